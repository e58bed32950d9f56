"""The mirror: an nginx on the controller that serves Debian packages, a Python index and model files,
and for hosts with GPUs the SIMULATED repositories of NVIDIA.

It is all that the lab's hosts can reach. Debian's files come from this machine's own archive when first
asked for, and are kept; they carry Debian's signatures, which the hosts check.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from quench.lab.images import apt_mirrors
from quench.lab.machine import run
from quench.lab.progress import LabError
from quench.lab.state import Lab, cache_folder

_ARCHIVE = """
    # Packages never change under their name: kept for ever, written whole or not at all.
    location /{name}/pool/ {{ root {cache}; error_page 404 = @{name}; log_not_found off; }}
    location @{name} {{
        set $stored {cache}$uri;
        {upstream}
        proxy_store $stored;
        proxy_store_access user:rw group:r all:r;
    }}
    location /{name}/ {{
        {upstream}
    }}
"""
_CONFIGURATION = """\
# The lab's mirror. Written by `quench lab up`.
# The workers run as root, since the cache is in root's home folder; only the lab's hosts can reach them.
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/tmp;
    proxy_temp_path {cache}/tmp;
    fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp;
    scgi_temp_path {folder}/tmp;
    default_type application/octet-stream;
    types {{ text/html html; }}
    sendfile on;
    server {{
        listen {address};
        location /simple/ {{ root {folder}; index index.html; }}
        location /wheels/ {{ alias {house}/; }}
        location /models/ {{ root {cache_root}; }}
        {nvidia}
{archives}
    }}
}}
"""


def start(lab: Lab, house: Path, nvidia: Path | None = None) -> None:
    """Start the mirror of a lab and wait until it answers.

    Args:
        house: the Python packages.
        nvidia: the simulated repositories of NVIDIA, if the lab has hosts for them.
    """
    folder = lab.folder / "mirror"
    cache = cache_folder() / "apt"
    for path in (folder / "tmp", cache / "tmp"):
        path.mkdir(parents=True, exist_ok=True)
    archives = "".join(
        _ARCHIVE.format(name=name, cache=cache, upstream=_upstream(name, url)) for name, url in apt_mirrors().items()
    )
    address = f"{lab.gateway}:8080"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder,
            cache=cache,
            cache_root=cache_folder(),
            house=house,
            address=address,
            archives=archives,
            nvidia=f"location /nvidia/ {{ alias {nvidia}/; }}" if nvidia else "",
        )
    )
    stop(lab)
    run("nginx", "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log"))
    for _ in range(50):
        try:
            socket.create_connection((lab.gateway, 8080), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise LabError(f"the mirror does not answer on {address}; see {folder}/error.log")


def stop(lab: Lab) -> None:
    """Stop the mirror of a lab, if it runs."""
    pid_file = lab.folder / "mirror" / "nginx.pid"
    try:
        pid = int(pid_file.read_text())
        # The number may belong to somebody else by now.
        if b"nginx" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    for _ in range(50):
        if not pid_file.exists():
            return
        time.sleep(0.1)


def _upstream(name: str, url: str) -> str:
    host = urlsplit(url).netloc
    lines = [
        f"rewrite ^/{name}/(.*)$ {urlsplit(url).path}/$1 break;",
        f"proxy_pass {urlsplit(url).scheme}://{host};",
        f"proxy_set_header Host {host};",
        "proxy_http_version 1.1;",
        "proxy_ssl_server_name on;",
        "proxy_ssl_verify on;",
        "proxy_ssl_trusted_certificate /etc/ssl/certs/ca-certificates.crt;",
    ]
    return "\n        ".join(lines)
