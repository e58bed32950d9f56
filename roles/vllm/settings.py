"""Settings of the vllm role."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator
from typing_extensions import override

from quench.problems import Problem
from quench.secrets import SecretRef, SecretUnavailable
from quench.settings import Model, RoleSettings, check_names

REQUIREMENTS = "roles/vllm/requirements"
# The Python that each platform's own packages bring. What vLLM depends on differs between them.
_PYTHONS = {"debian-12": "py311", "debian-13": "py313", "ubuntu-24.04": "py312"}

# Arguments that this role sets itself, or that give away control of the host to whoever sends a request
# or publishes a model. vLLM names them with dashes; both spellings are refused.
_RESERVED = {
    "api-key",
    "config",
    "hf-token",
    "host",
    "max-model-len",
    "max-num-seqs",
    "model",
    "port",
    "root-path",
    "served-model-name",
    "shutdown-timeout",
    "ssl-certfile",
    "ssl-keyfile",
    "tensor-parallel-size",
    "uds",
}
_DANGEROUS = {
    "allowed-local-media-path",
    "enable-log-outputs",
    "enable-log-requests",
    "enable-prompt-embeds",
    "enable-sleep-mode",
    "middleware",
    "tool-server",
    "trust-remote-code",
    "trust-request-chat-template",
    "trust-request-mm-kwargs",
}


def _named(version: str) -> str:
    """What a lock file has vLLM as, for a regular expression: the version, or the one that it is labelled from."""
    public, _, _ = version.partition("+")
    return f"({re.escape(version)}|{re.escape(public)})"


class ServedModel(Model):
    """One model, served by one unit, `vllm@NAME.service`."""

    port: int = Field(ge=1024, le=65535, description="TCP port on the loopback address.", examples=[8000])
    kind: Literal["generate", "embed"] = Field(
        default="generate",
        description=(
            "What the model is for: `generate` is chats, completions and responses, `embed` is embeddings. Clients may "
            "call that alone, and balancers ask for it to learn whether the model answers."
        ),
    )
    revision: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Revision of the weights. Each has a folder of its own: /srv/models/NAME/REVISION.",
        examples=["2026-10-01"],
    )
    source: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        repr=False,
        description="Where the host fetches the files from. Unset: the folder must be on the host already.",
        examples=["https://mirror.example.org/models/llama-3.3-70b/2026-10-01"],
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the file SHA256SUMS at the source. It pins every file of the model.",
    )
    gpus: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="GPUs of this model, by index. More than one: the model is split over them.",
        examples=[[0, 1]],
    )
    mig_slice: str | None = Field(
        default=None,
        pattern=r"^MIG-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description=(
            "Instead of gpus: one MIG slice by its UUID, as nvidia-smi -L lists it. Alone: there is no NVLink between "
            "slices, and so no splitting over them."
        ),
        examples=["MIG-a9bd6b2c-3e5e-5d5f-8c6b-9d6f2f5d6e01"],
    )
    max_model_len: int | None = Field(
        default=None, ge=1, description="Longest prompt and answer together, in tokens. Unset: the model's own."
    )
    concurrent: int = Field(
        default=256,
        ge=1,
        description="Requests that the engine works on at the same time. A balancer keeps the others waiting.",
    )
    version: str | None = Field(
        default=None,
        pattern=r"^[0-9][0-9A-Za-z.+]*$",
        description="vLLM version of this model. Unset: vllm_version. Versions stand side by side.",
    )
    engine_args: dict[str, JsonValue] = Field(
        default={},
        description="Further arguments of `vllm serve`, by their long name without the dashes.",
        examples=[{"gpu-memory-utilization": 0.9}],
    )

    @field_validator("engine_args")
    @classmethod
    def _harmless(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no argument's name; give it without dashes and value")
            plain = name.replace("_", "-").removeprefix("no-")
            # vLLM takes the beginning of a name for the whole of it.
            if any(reserved.startswith(plain) for reserved in _RESERVED):
                raise ValueError(f"{name} is set by the role itself; remove it here")
            if any(dangerous.startswith(plain) for dangerous in _DANGEROUS):
                raise ValueError(
                    f"{name} lets requests or model files run code, read files or fill logs with prompts; remove it"
                )
        return value

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if (self.source is None) != (self.sha256 is None):
            raise ValueError(
                "source and sha256 go together; set both to fetch the model, or neither if it is on the host"
            )
        return self


class VllmSettings(RoleSettings):
    """vLLM as sandboxed systemd units, one for each model."""

    prefix: ClassVar[str] = "vllm"

    version: str = Field(
        pattern=r"^[0-9][0-9A-Za-z.+]*$",
        description=(
            "vLLM version. `vllm_requirements` has its lock file, VERSION-PYTHON.txt. What is built of one stays as it "
            "is: another for the same vLLM, as after a fix of a dependency, has a label: 0.32.0+2."
        ),
        examples=["0.32.0"],
    )
    requirements: str = Field(
        default=REQUIREMENTS,
        description=(
            "Folder, where the run starts, with a lock file for each version and Python: pip requirements with hashes."
        ),
    )
    models: dict[str, ServedModel] = Field(
        min_length=1,
        description="The models by the name that clients ask for.",
        examples=[{"llama-3.3-70b": {"port": 8000, "revision": "2026-10-01", "gpus": [0, 1]}}],
    )
    device: Literal["cuda", "cpu"] = Field(
        default="cuda",
        validate_default=True,
        description="What the engine computes on. `cpu` is for trials: it is slow.",
    )
    cpu_kv_cache_gib: int = Field(
        default=4, ge=1, description="Memory for the key-value cache when device is `cpu`, in GiB."
    )
    source_zones: list[str] = Field(
        default=["management"], description="Zones in which the Python index and the model store are."
    )
    index_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        repr=False,
        description="Python package index of the host. Unset: the one that pip on the host is set up with.",
        examples=["https://mirror.example.org/python/simple"],
    )
    hf_token: SecretRef | None = Field(
        default=None,
        description="Hugging Face token, for engine arguments that load gated parts. Needs hub_access.",
        examples=["env:HF_TOKEN"],
    )
    hub_access: bool = Field(
        default=False,
        description="Relaxation: let the engine talk to the Hugging Face hub. Off: nothing leaves the host.",
    )
    drain_seconds: int = Field(
        default=300,
        ge=0,
        le=3600,
        description="How long a stopping engine may finish the answers that it has begun, in seconds.",
    )
    start_seconds: int = Field(
        default=1800,
        ge=10,
        description="How long an engine may take until it answers, loading of weights included, in seconds.",
    )

    @field_validator("models")
    @classmethod
    def _nothing_twice(cls, value: dict[str, ServedModel]) -> dict[str, ServedModel]:
        check_names(value, "a unit")
        ports: dict[int, str] = {}
        gpus: dict[int | str, str] = {}
        for name, model in value.items():
            if model.gpus and model.mig_slice:
                raise ValueError(f"model {name} has gpus and a mig_slice; keep one of them")
            if model.port in ports:
                raise ValueError(
                    f"models {ports[model.port]} and {name} are both on port {model.port}; give each its own port"
                )
            ports[model.port] = name
            mine: list[int | str] = [model.mig_slice] if model.mig_slice else [*model.gpus]
            for gpu in mine:
                if gpu in gpus:
                    raise ValueError(f"models {gpus[gpu]} and {name} are both on GPU {gpu}; give each GPU to one model")
                gpus[gpu] = name
        return value

    @field_validator("device")
    @classmethod
    def _gpus_are_named(cls, value: str, info: ValidationInfo) -> str:
        for name, model in info.data.get("models", {}).items():
            if value == "cuda" and not (model.gpus or model.mig_slice):
                raise ValueError(f"model {name} has no GPU; set its gpus, or vllm_device = 'cpu' for a trial")
        return value

    def version_of(self, model: ServedModel) -> str:
        """The vLLM version that serves a model."""
        return model.version or self.version

    def versions(self) -> list[str]:
        """All versions that this host needs."""
        return sorted({self.version_of(model) for model in self.models.values()})

    def lock_file(self, version: str) -> Path:
        """The requirements file, with hashes, of a vLLM version, for the Python of the host's platform."""
        return Path(self.requirements) / f"{version}-{_PYTHONS[self.platform]}.txt"

    def cuda_of(self, version: str) -> int | None:
        """CUDA's major version that a vLLM version is built for, by its lock file; None for the CPU's."""
        lock = self.lock_file(version).read_text()
        match = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.", lock, re.MULTILINE)
        return int(match[1]) if match else None

    @override
    def problems(self, host: str) -> Iterator[Problem]:
        for version in self.versions():
            lock = self.lock_file(version)
            if not lock.exists():
                python = _PYTHONS[self.platform]
                locks = Path(self.requirements).glob(f"*-{python}.txt")
                known = ", ".join(sorted(path.stem.removesuffix(f"-{python}") for path in locks))
                what = f"there is no lock file {lock}"
                yield Problem(host, "vllm_version", what, f"add it, or choose from: {known or 'none'}")
            elif not re.search(rf"^vllm(=={_named(version)}| @) ", lock.read_text(), re.MULTILINE):
                # A file that was cut off, or is still empty, makes an environment that counts as complete.
                what = f"the lock file {lock} does not name vllm=={version}"
                yield Problem(host, "vllm_version", what, "make it anew: uv pip compile --generate-hashes")
        try:
            if self.hf_token is not None and "\n" in self.hf_token.resolve():
                yield Problem(host, "vllm_hf_token", "has more than one line", "give the token alone")
        except SecretUnavailable:
            return  # said for every secret alike, by the role decorator
