"""Files of the vllm role."""

from __future__ import annotations

from quench import Engine, Managed, ManagedDirectory, ManagedFile, Peer, Route, template, to_yaml
from roles.vllm.settings import ServedModel, VllmSettings

# What vLLM offers to clients, of all that it serves; it refuses what its model is not for. Everything else it serves is
# open to whoever reaches its port, with or without its --api-key: docs.vllm.ai, usage/security.
ROUTES = {
    "generate": (
        Route("POST", "/v1/chat/completions"),
        Route("POST", "/v1/completions"),
        Route("POST", "/v1/responses"),
    ),
    "embed": (Route("POST", "/v1/embeddings"),),
}

# What the role shuts, and a model's engine_args may open again: with a comment in the file.
_SHUT: dict[str, object] = {
    # No page that explains the interface to whoever finds the port, no version in the answers.
    "disable-fastapi-docs": True,
    "fingerprint-mode": "none",
    # The proxy logs who asked what; the access log would add nothing but noise.
    "disable-uvicorn-access-log": True,
}


def unit(name: str) -> str:
    """The unit that serves a model."""
    return f"vllm@{name}.service"


def model_folder(name: str, model: ServedModel) -> str:
    """Where a model's files are on the host."""
    return f"/srv/models/{name}/{model.revision}"


def environment_folder(version: str) -> str:
    """Where a vLLM version is on the host."""
    return f"/opt/vllm/{version}"


def engines(settings: VllmSettings) -> list[Engine]:
    """What a host serves, for the proxies in front of it."""
    return [
        Engine(name, model.port, ROUTES[model.kind], group="vllm", concurrent=model.concurrent)
        for name, model in settings.models.items()
    ]


def served(peer: Peer) -> list[Engine]:
    """The same of another host, by its data.

    Raises:
        Refused: with what is wrong in that data.
    """
    return engines(VllmSettings.load(peer.name, peer.data))


def files(settings: VllmSettings) -> list[Managed]:
    """All files of the role."""
    managed: list[Managed] = [ManagedDirectory("/etc/vllm"), ManagedDirectory("/srv/models")]
    for name, model in settings.models.items():
        managed += _model_files(settings, name, model)
    return managed


def _model_files(settings: VllmSettings, name: str, model: ServedModel) -> list[Managed]:
    values = {
        "settings": settings,
        "name": name,
        "model": model,
        "environment": environment_folder(settings.version_of(model)),
        "engine": "/etc/vllm/" + name,
    }
    return [
        ManagedFile(
            f"/etc/systemd/system/{unit(name)}",
            template("vllm", "/etc/systemd/system/vllm@.service", values),
            check=f"systemd-analyze verify --man=no {unit(name)}",
            restarts=unit(name),
        ),
        ManagedFile(
            f"/etc/vllm/{name}.yaml",
            to_yaml("vllm", _serve_arguments(settings, name, model), relaxed=_relaxed(name, model)),
            restarts=unit(name),
        ),
        # Read by systemd as root and by nobody else: the engine's own user cannot open it.
        ManagedFile(
            f"/etc/vllm/{name}.env",
            template("vllm", "/etc/vllm/model.env", values),
            mode=0o600,
            restarts=unit(name),
            secrets=(settings.hf_token,) if settings.hf_token else (),
        ),
    ]


def _relaxed(name: str, model: ServedModel) -> list[str]:
    given = {argument.replace("_", "-").removeprefix("no-") for argument in model.engine_args}
    return [f"vllm_models.{name}.engine_args: {argument}" for argument in _SHUT if argument in given]


def _serve_arguments(settings: VllmSettings, name: str, model: ServedModel) -> dict[str, object]:
    arguments: dict[str, object] = {
        "model": model_folder(name, model),
        "served-model-name": name,
        "host": "127.0.0.1",
        "port": model.port,
        # Without it a stop aborts every answer at once; it needs KillMode=mixed in the unit.
        "shutdown-timeout": settings.drain_seconds,
        **_SHUT,
        # Comment lines keep a stream alive while a request waits for its turn.
        "sse-keep-alive-interval": 15,
        # The balancers' own checks find room in an engine that has as much to do as they give it.
        "max-num-seqs": model.concurrent + 8,
    }
    if model.max_model_len is not None:
        arguments["max-model-len"] = model.max_model_len
    if len(model.gpus) > 1:
        arguments["tensor-parallel-size"] = len(model.gpus)
    return arguments | dict(model.engine_args)
