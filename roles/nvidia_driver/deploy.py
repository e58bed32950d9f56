"""Bring the NVIDIA driver into place."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host

from quench import (
    Gpus,
    allow,
    ask,
    confirm,
    download,
    ensure,
    install,
    packages,
    pinned_packages,
    reboot,
    role,
    service,
    shell_script,
)
from roles.nvidia_driver import host as gpu_host
from roles.nvidia_driver.compatibility import oldest_branches, table, tells_fabric_state
from roles.nvidia_driver.files import (
    APT_SOURCES,
    FABRIC_MANAGER,
    FAMILY,
    MODPROBE,
    PERSISTENCED,
    build_packages,
    chosen,
    fabric_packages,
    files,
    source_file,
    sources,
)
from roles.nvidia_driver.settings import NvidiaDriverSettings

_HERE = Path(__file__).parent
_INITRAMFS = "/var/lib/quench/converged/initramfs"


@role(NvidiaDriverSettings)
def nvidia_driver(settings: NvidiaDriverSettings, apt_sources: str = APT_SOURCES) -> Gpus:
    """The driver, its modules, its libraries and the fabric manager, of one version, loaded and verified."""
    if not settings.gpus:
        return Gpus()
    wanted = chosen(settings)
    manager = "dnf" if settings.family == "rhel" else "apt"
    name = host.name
    ask(gpu_host.PROBE, lambda answer: gpu_host.problems(name, settings, gpu_host.parse(answer)))
    modules = shell_script(_HERE / "modules.sh", wanted.version)
    if not settings.distro:
        allow(download("nvidia_driver", settings.repository, settings.source_zones, "packages of NVIDIA"))

    switches = fabric_packages(settings)
    if switches:
        packages(switches)
    install("nvidia_driver-sources", sources(settings, apt_sources))
    units = [PERSISTENCED, *([FABRIC_MANAGER] if wanted.fabric else [])]
    pinned_packages(
        f"Install the NVIDIA driver {wanted.version} with its {wanted.modules} kernel modules",
        wanted.packages,
        family=FAMILY[manager],
        former=wanted.former,
        extra=build_packages(settings),
        source=source_file(settings, apt_sources),
        check=f'why=$({modules}); [ -z "$why" ] || {{ echo "$why"; false; }}',
        hold_back=units,
    )
    managed = files(settings)
    install("nvidia_driver", managed)
    ensure(
        "Rebuild the initramfs with the module options",
        f'[ "$(sha256sum <{MODPROBE})" = "$(cat {_INITRAMFS} 2>/dev/null)" ] || echo stale',
        "if command -v update-initramfs >/dev/null; then update-initramfs -u -k all; "
        "elif command -v dracut >/dev/null; then dracut --force --regenerate-all; fi >/dev/null && "
        f"sha256sum <{MODPROBE} >{_INITRAMFS}",
    )
    reboot(
        "Reboot into the new driver",
        question=shell_script(
            _HERE / "reboot.sh", wanted.version, *(f"{name}={value}" for name, value in settings.module_options.items())
        ),
        ready=modules,
        units=[*units, "nvidia-mig-manager.service"],
        allowed=settings.reboot == "when-needed",
        key="nvidia_driver_reboot",
        seconds=settings.reboot_seconds,
    )
    ensure(
        "Load the kernel modules",
        "sed 's/#.*//' /etc/modules-load.d/quench-nvidia.conf | while read -r module; do "
        '[ -z "$module" ] || [ -d "/sys/module/$module" ] || echo "$module"; done',
        "sed 's/#.*//' /etc/modules-load.d/quench-nvidia.conf | xargs -r -n 1 modprobe",
    )
    for unit in host.loop(units):
        service(unit, managed)
    count = sum(settings.gpus.values())
    confirm(
        "Verify modules, libraries, fabric and CUDA",
        shell_script(
            _HERE / "verify.sh",
            wanted.version,
            str(count),
            wanted.fabric or "",
            "state" if tells_fabric_state(settings.gpus) else "",
        ),
    )
    return Gpus(
        count=count,
        driver=wanted.version,
        cuda=wanted.cuda,
        dcgm=wanted.release.dcgm,
        exporter=wanted.release.exporter,
        toolkit=wanted.release.toolkit,
        mig=wanted.release.mig,
        sliceable=all(table().gpus[gpu].slices for gpu in settings.gpus),
        branches=oldest_branches(),
    )
