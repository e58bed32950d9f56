"""Files of the nginx role."""

from __future__ import annotations

from collections.abc import Sequence

from quench import (
    Certificate,
    Engine,
    LogFiles,
    Managed,
    ManagedDirectory,
    ManagedFile,
    Node,
    Peer,
    Route,
    certificates,
    template,
    to_json,
)
from quench.contracts import HEALTH_CLIENT
from quench.keyring import expires
from roles.nginx.settings import NginxSettings

UNIT = "nginx.service"
_FOLDER = "/etc/nginx/quench"
KEYRING = f"{_FOLDER}/keyring.json"
_USER = "www-data"
PACKAGES = ["nginx", "libnginx-mod-http-js"]
LOGS = LogFiles(
    service="nginx",
    paths=("/var/log/nginx/access.json", "/var/log/nginx/error.log"),
    owner=_USER,
    # nginx(8): USR1 opens the log files anew. A stopped unit has the main process 0, and kill(1) would then
    # signal logrotate itself.
    reopen='pid=$(systemctl show --property=MainPID --value nginx.service); [ "$pid" = 0 ] || kill -USR1 "$pid"',
)
# nginx 1.25.1 turned http2 from a parameter of listen into a directive of its own; Debian 12 has 1.22,
# Ubuntu 24.04 has 1.24. nginx.org/en/docs/http/ngx_http_v2_module.html
_HTTP2_DIRECTIVE = {"debian-12": False, "debian-13": True, "ubuntu-24.04": False}


def _check(issued: Certificate) -> str:
    """As the user and with the power that the unit has, so that it also tells whether the key can be read."""
    groups = f"--groups={issued.group}" if issued.certificate else "--init-groups"
    return (
        f'ulimit -Sn "$(ulimit -Hn)"; setpriv --reuid={_USER} --regid={_USER} {groups} '
        '--inh-caps=+net_bind_service --ambient-caps=+net_bind_service nginx -t -q -g "pid /dev/null;"'
    )


def files(settings: NginxSettings, engines: Sequence[Engine], issued: Certificate) -> list[Managed]:
    """All files of the role, for the engines of the same host, with a certificate that it has got, or with a file."""
    check = _check(issued)
    values: dict[str, object] = {
        "settings": settings,
        "engines": engines,
        "routes": routes(engines, balanced=bool(settings.balancers)),
        "rates": sorted({(client.requests_per_minute, client.burst) for client in settings.clients.values()}),
        "concurrencies": sorted({client.concurrent for client in settings.clients.values()}),
        "user": _USER,
        "certificate": issued.certificate if issued.certificate else f"{_FOLDER}/tls.crt",
        "private_key": issued.private_key if issued.certificate else f"{_FOLDER}/tls.key",
        "groups": [issued.group] if issued.certificate else [],
        "http2_directive": _HTTP2_DIRECTIVE[settings.platform],
        "health_client": HEALTH_CLIENT,
        # Behind balancers a variable names the engine; else the script jumps to one of the locations.
        "locations": [("/", "$engine")]
        if settings.balancers
        else [(f"@engine_{number}", f"engine_{number}") for number, _ in enumerate(engines, 1)],
        "request_id": "$http_x_request_id" if settings.balancers else "$request_id",
    }
    keys = [] if settings.balancers else _keys(settings, values, check)
    authority = [] if not settings.balancers else [_authority(settings, check)]
    return [
        ManagedDirectory("/var/lib/nginx", owner=_USER, group=_USER, mode=0o750),
        ManagedDirectory("/var/log/nginx", owner=_USER, group="adm", mode=0o750),
        ManagedDirectory(_FOLDER, group=_USER, mode=0o750),
        ManagedFile(
            "/etc/nginx/nginx.conf",
            template("nginx", "/etc/nginx/nginx.conf", values),
            check=check,
            reloads=UNIT,
        ),
        *keys,
        *authority,
        *_pair(settings, check),
        ManagedFile(
            f"/etc/systemd/system/{UNIT}",
            template("nginx", f"/etc/systemd/system/{UNIT}", values),
            check=f"systemd-analyze verify --man=no {UNIT}",
            restarts=UNIT,
        ),
    ]


def _pair(settings: NginxSettings, check: str) -> list[Managed]:
    """Certificate and key, if they come as files."""
    if settings.certificate is None or settings.private_key is None:
        return []
    return [
        ManagedFile(f"{_FOLDER}/tls.crt", certificates.text(settings.certificate), check=check, reloads=UNIT),
        ManagedFile(
            f"{_FOLDER}/tls.key",
            f"{settings.private_key}\n",
            group=_USER,
            mode=0o640,
            check=check,
            reloads=UNIT,
            secrets=(settings.private_key,),
        ),
    ]


def _keys(settings: NginxSettings, values: dict[str, object], check: str) -> list[Managed]:
    return [
        ManagedFile(
            "/etc/nginx/quench/gateway.js",
            template("nginx", "/etc/nginx/quench/gateway.js", values, comment="//"),
            check=check,
            reloads=UNIT,
        ),
        keyring_file(settings),
    ]


def keyring_file(settings: NginxSettings) -> ManagedFile:
    """Who has which key. Read anew for each request: a key comes and goes without a reload."""
    return ManagedFile(KEYRING, to_json("nginx", _keyring(settings)), group=_USER, mode=0o640)


def limits(settings: NginxSettings) -> set[str]:
    """The zones that the clients' limits need: nginx has them from its start on."""
    clients = settings.clients.values()
    rates = {f"rate_{client.requests_per_minute}_{client.burst}" for client in clients}
    return rates | {f"concurrent_{client.concurrent}" for client in clients}


def _authority(settings: NginxSettings, check: str) -> ManagedFile:
    text = certificates.text(settings.balancer_ca)
    return ManagedFile(f"{_FOLDER}/balancer-ca.crt", text, check=check, reloads=UNIT)


def node(peer: Peer, engines: Sequence[Engine]) -> Node:
    """Another host as a balancer calls it, by its data.

    Raises:
        Refused: with what is wrong in that data.
    """
    settings = NginxSettings.load(peer.name, peer.data)
    address = settings.address or str(peer.data.get("ssh_hostname") or peer.name)
    return Node(
        peer.name,
        address,
        settings.port,
        settings.server_name,
        tuple(engines),
        weight=settings.weight,
        standby=settings.standby,
    )


def routes(engines: Sequence[Engine], *, balanced: bool) -> list[Route]:
    """What clients may call: what the engines offer, and the list of models, which the first proxy answers itself."""
    own = set() if balanced else {Route("GET", "/v1/models")}
    return sorted({route for engine in engines for route in engine.routes} | own)


def _keyring(settings: NginxSettings) -> dict[str, object]:
    return {
        "keys": {
            key.sha256: {
                "client": name,
                "expires": expires(key),
                "models": client.models,
                "rate": f"{client.requests_per_minute}_{client.burst}",
                "concurrent": str(client.concurrent),
            }
            for name, client in sorted(settings.clients.items())
            for key in client.keys
        }
    }
