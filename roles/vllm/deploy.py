"""Bring vLLM and its models into place."""

from __future__ import annotations

from collections.abc import Iterator

from pyinfra import host

from quench import (
    Engine,
    Gpus,
    Problem,
    Refused,
    Slices,
    account,
    allow,
    download,
    install,
    model_files,
    packages,
    python_environment,
    require_path,
    role,
    service,
)
from roles.vllm.files import engines, environment_folder, files, model_folder, unit
from roles.vllm.settings import VllmSettings

# Compilers and the Python headers: Triton and Inductor compile kernels at run time. libnuma1: the CPU engine.
PACKAGES = ["curl", "g++", "gcc", "libc6-dev", "libnuma1", "python3-dev", "python3-venv"]


@role(VllmSettings)
def vllm(settings: VllmSettings, gpus: Gpus, slices: Slices) -> list[Engine]:
    """vLLM's versions side by side, each model verified, one sandboxed unit for each model."""
    if settings.device == "cuda" and gpus.count:
        problems = list(_unfit(settings, gpus, slices))
        if problems:
            raise Refused(problems)
    for name, model in settings.models.items():
        if model.source is None:
            require_path(
                model_folder(name, model),
                key=f"vllm_models.{name}",
                remedy="copy the model there, or set its source and sha256",
            )
    allow(download("vllm", settings.index_url, settings.source_zones, "Python packages of the engine"))
    sources = [model.source for model in settings.models.values() if model.source is not None]
    allow(*(download("vllm", url, settings.source_zones, "models") for url in sources))
    packages(PACKAGES)
    account("vllm", home="/var/lib/vllm")
    for version in host.loop(settings.versions()):
        lock = settings.lock_file(version).read_text()
        folder = environment_folder(version)
        python_environment(folder, lock, index_url=settings.index_url, key="vllm_version")
    for name in host.loop(settings.models):
        model = settings.models[name]
        if model.source is not None and model.sha256 is not None:
            folder = model_folder(name, model)
            model_files(folder, url=model.source, sha256=model.sha256, key=f"vllm_models.{name}.revision")
    managed = files(settings)
    install("vllm", managed)
    for name in host.loop(settings.models):
        service(unit(name), managed)
    return engines(settings)


def _unfit(settings: VllmSettings, gpus: Gpus, slices: Slices) -> Iterator[Problem]:
    """What the host's GPUs and their driver cannot do."""
    for version in settings.versions():
        cuda = settings.cuda_of(version)
        if cuda is not None and cuda > int(gpus.cuda.partition(".")[0]):
            what = f"vLLM {version} is built for CUDA {cuda}, and driver {gpus.driver} runs no more than {gpus.cuda}"
            newer = f"a driver of branch {gpus.branches[cuda]} or newer" if cuda in gpus.branches else "a newer driver"
            yield Problem(host.name, "nvidia_driver_version", what, f"choose {newer}, or another vllm_version")
    for name, model in settings.models.items():
        for gpu in model.gpus:
            if gpu >= gpus.count:
                what = f"names GPU {gpu}, and the host has {gpus.count}"
                yield Problem(host.name, f"vllm_models.{name}.gpus", what, f"indices are 0 to {gpus.count - 1}")
            if gpu in slices.gpus:
                what = f"names GPU {gpu}, which mig_layout cuts into slices"
                yield Problem(host.name, f"vllm_models.{name}.gpus", what, "give it a mig_slice: see nvidia-smi -L")
