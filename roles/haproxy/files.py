"""Files of the haproxy role."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quench import (
    Certificate,
    Engine,
    LogFiles,
    Managed,
    ManagedDirectory,
    ManagedFile,
    Node,
    Route,
    certificates,
    template,
)
from quench.contracts import HEALTH_CLIENT
from quench.keyring import expires
from roles.haproxy.settings import HaproxySettings

UNIT = "haproxy.service"
ROUTER = "body-router.service"
# The pipe that HAProxy writes its log to, and the program that brings it to its file.
LOG_UNITS = ("haproxy-log.socket", "haproxy-log.service")
_USER = "haproxy"
# nginx and its script read what HAProxy cannot hold. socat: the way to HAProxy's socket. curl, openssl: a rollout asks
# nodes from here.
PACKAGES = ["curl", "haproxy", "libnginx-mod-http-js", "nginx", "openssl", "socat"]
LOGS = LogFiles(service="haproxy", paths=("/var/log/haproxy/access.json",), owner="root", reopen="")
FOLDER = "/etc/haproxy/quench"
STATE = "/usr/local/lib/quench/haproxy-server-state"
MAPS = (f"{FOLDER}/keys.map", f"{FOLDER}/lists.map", f"{FOLDER}/pools.map")

# As the user that the unit has, so that it also tells whether the keys can be read.
_AS_USER = f"setpriv --reuid={_USER} --regid={_USER}"
_ROUTER_CHECK = f"{_AS_USER} --init-groups nginx -t -q -c /etc/haproxy/body-router/nginx.conf -g 'pid /dev/null;'"

# What a log line holds. HAProxy 3.0 could write JSON by itself; 2.6, in Debian 12, cannot.
_LOG = {
    "time": '"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]"',
    "request_id": '"%ID"',
    "client": '"%[var(txn.client)]"',
    "model": '"%[var(txn.served)]"',
    "method": '"%HM"',
    # A line has an end, and a path need not.
    "path": '"%[var(txn.path),bytes(0,200),json(utf8s)]"',
    "status": "%ST",
    "bytes_in": "%U",
    "bytes_out": "%B",
    "milliseconds": "%Ta",
    "queued": "%Tw",
    "connect": "%Tc",
    "first_byte": "%Tr",
    "node": '"%s"',
    "end": '"%ts"',
    "address": '"%ci"',
    "tls": '"%sslv"',
}


@dataclass(frozen=True)
class Pool:
    """The nodes that serve a model, each with its engine, and how they are asked whether it answers."""

    model: str
    members: tuple[tuple[Node, Engine], ...]

    @property
    def name(self) -> str:
        """Of the backend."""
        return f"pool_{self.model}"

    @property
    def probe_path(self) -> str:
        """What the health check calls."""
        paths = {route.path for _, engine in self.members for route in engine.routes}
        return "/v1/completions" if "/v1/completions" in paths else "/v1/embeddings"

    @property
    def probe_body(self) -> str:
        """The smallest piece of real work."""
        work: dict[str, object] = {"prompt": "1", "max_tokens": 1}
        if self.probe_path == "/v1/embeddings":
            work = {"input": "1"}
        return json.dumps({"model": self.model, **work})


def pools(nodes: Sequence[Node]) -> list[Pool]:
    """A pool for each model that the nodes serve."""
    found: dict[str, list[tuple[Node, Engine]]] = {}
    for node in nodes:
        for engine in node.engines:
            found.setdefault(engine.model, []).append((node, engine))
    return [Pool(model, tuple(members)) for model, members in sorted(found.items())]


def files(settings: HaproxySettings, nodes: Sequence[Node], issued: Certificate) -> list[Managed]:
    """All files of the role, for these nodes, with a certificate that the host has got by itself, or with a file."""
    groups = f"--groups={issued.group}" if issued.certificate else "--init-groups"
    check = f"cd / && {_AS_USER} {groups} haproxy -c -f /etc/haproxy/haproxy.cfg"
    routes = {route for node in nodes for engine in node.engines for route in engine.routes}
    fields = ",".join(f'"{name}":{value}' for name, value in _LOG.items())
    values: dict[str, object] = {
        "settings": settings,
        "pools": pools(nodes),
        "routes": sorted(routes | {Route("GET", "/v1/models")}),
        "folder": FOLDER,
        "certificate": issued.certificate if issued.certificate else f"{FOLDER}/tls.crt",
        "groups": [issued.group] if issued.certificate else [],
        "health_client": HEALTH_CLIENT,
        "log_format": f"{{{fields}}}",
        "user": _USER,
    }
    return [
        ManagedDirectory("/var/lib/haproxy", owner=_USER, group=_USER, mode=0o750),
        ManagedDirectory("/var/log/haproxy", group="adm", mode=0o750),
        ManagedDirectory(FOLDER, group=_USER, mode=0o750),
        ManagedFile(
            "/etc/haproxy/haproxy.cfg",
            template("haproxy", "/etc/haproxy/haproxy.cfg", values),
            check=check,
            reloads=UNIT,
        ),
        *maps(settings, nodes),
        *_certificates(settings, check),
        ManagedFile(
            "/etc/haproxy/body-router/nginx.conf",
            template("haproxy", "/etc/haproxy/body-router/nginx.conf", values),
            check=_ROUTER_CHECK,
            reloads=ROUTER,
        ),
        ManagedFile(
            "/etc/haproxy/body-router/router.js",
            template("haproxy", "/etc/haproxy/body-router/router.js", values, comment="//"),
            check=_ROUTER_CHECK,
            reloads=ROUTER,
        ),
        ManagedFile(
            STATE,
            "#!/bin/sh\n" + template("haproxy", STATE, values),
            mode=0o755,
        ),
        *(
            ManagedFile(
                f"/etc/systemd/system/{unit}",
                template("haproxy", f"/etc/systemd/system/{unit}", values),
                check=f"systemd-analyze verify --man=no {unit}",
                restarts=unit,
            )
            for unit in LOG_UNITS
        ),
        ManagedFile(
            "/etc/systemd/system/nginx.service.d/quench.conf",
            template("haproxy", "/etc/systemd/system/nginx.service.d/quench.conf", values),
        ),
        ManagedFile(
            f"/etc/systemd/system/{ROUTER}",
            template("haproxy", f"/etc/systemd/system/{ROUTER}", values),
            check=f"systemd-analyze verify --man=no {ROUTER}",
            restarts=ROUTER,
        ),
        ManagedFile(
            f"/etc/systemd/system/{UNIT}",
            template("haproxy", f"/etc/systemd/system/{UNIT}", values),
            check=f"systemd-analyze verify --man=no {UNIT}",
            restarts=UNIT,
        ),
    ]


def _certificates(settings: HaproxySettings, check: str) -> list[ManagedFile]:
    pairs = {"node": (settings.node_certificate, settings.node_private_key)}
    if settings.certificate is not None and settings.private_key is not None:
        pairs["tls"] = (settings.certificate, settings.private_key)
    found = [
        ManagedFile(f"{FOLDER}/nodes-ca.crt", certificates.text(settings.node_ca), check=check, reloads=UNIT),
    ]
    for name, (certificate, key) in pairs.items():
        found += [
            ManagedFile(f"{FOLDER}/{name}.crt", certificates.text(certificate), check=check, reloads=UNIT),
            # HAProxy looks for the key under this name: ssl-load-extra-files.
            ManagedFile(
                f"{FOLDER}/{name}.crt.key",
                f"{key}\n",
                group=_USER,
                mode=0o640,
                check=check,
                reloads=UNIT,
                secrets=(key,),
            ),
        ]
    return found


def maps(settings: HaproxySettings, nodes: Sequence[Node]) -> list[ManagedFile]:
    """The keyring, and who may use which pool: files that the running process also takes from its socket."""
    served = [pool.model for pool in pools(nodes)]
    keys, lists, pooled = [], [], []
    for name, client in sorted(settings.clients.items()):
        models = [model for model in served if client.models is None or model in client.models]
        limits = f"{client.requests_per_minute}|{client.concurrent}"
        keys += [f"{key.sha256} {name}|{expires(key)}|{limits}" for key in client.keys]
        data = [{"id": model, "object": "model", "created": 0, "owned_by": "quench"} for model in models]
        lists.append(f"{name} {json.dumps({'object': 'list', 'data': data})}")
        pooled += [f"{name}/{model} pool_{model}" for model in models]
    # Read into the running process line by line: a comment there would be an entry.
    texts = ("".join(f"{line}\n" for line in lines) for lines in (keys, lists, pooled))
    return [ManagedFile(path, text, group=_USER, mode=0o640) for path, text in zip(MAPS, texts, strict=True)]
