"""What the fixture repositories offer besides the driver: names and versions as NVIDIA has them, contents SIMULATED."""

from __future__ import annotations

from quench.lab.nvidia_package import File, Package, program, units


def other_packages() -> list[Package]:
    """What NVIDIA's repository has besides the driver, the same for each distribution."""
    found = []
    for version in ("2025.06.6", "2025.10.12", "2025.12.1"):
        files = program("nvlsm", "/opt/nvidia/nvlsm/sbin/nvlsm")
        found.append(Package("nvlsm", version, files=files, words={"VERSION": version}))
    for version in ("4.4.1", "4.5.3", "4.6.0"):
        words = {"VERSION": version}
        engine = {
            **program("nv-hostengine"),
            **program("dcgmi"),
            **units("nvidia-dcgm.service", "nvidia-gpu-reset.target"),
        }
        stem = "datacenter-gpu-manager-4-"
        found += [
            Package(f"{stem}core", version, epoch=1, files=engine, units=("nvidia-dcgm.service",),
                    users=("nvidia-dcgm",), words=words),
            *(Package(f"{stem}{part}", version, epoch=1, depends=(f"{stem}core=",), words=words)
              for part in ("cuda12", "cuda13", "proprietary", "proprietary-cuda13")),
        ]  # fmt: skip
    for version in ("4.5.2", "4.8.2", "4.9.0"):
        files = {
            **program("dcgm-exporter"),
            **units("nvidia-dcgm-exporter.service"),
            "/etc/dcgm-exporter/default-counters.csv": File("default-counters.csv"),
            "/etc/dcgm-exporter/dcp-metrics-included.csv": File("default-counters.csv"),
        }
        found.append(
            Package("datacenter-gpu-manager-exporter", version, files=files,
                    units=("nvidia-dcgm-exporter.service",), words={"VERSION": version})
        )  # fmt: skip
    for version in ("0.14.2", "0.15.0", "0.16.0"):
        files = {
            **program("nvidia-mig-parted"),
            **units("nvidia-mig-manager.service"),
            "/etc/nvidia-mig-manager/config.yaml": File("mig-config.yaml"),
            "/etc/nvidia-mig-manager/hooks.yaml": File("mig-hooks.yaml"),
            "/etc/nvidia-mig-manager/service.sh": File("mig-service.sh", mode=0o755),
        }
        found.append(
            Package("nvidia-mig-manager", version, files=files, units=("nvidia-mig-manager.service",),
                    words={"VERSION": version})
        )  # fmt: skip
    return found


def container_packages() -> list[Package]:
    """The repository of the container toolkit."""
    found = []
    for version in ("1.18.0", "1.20.0", "1.21.0"):
        words = {"VERSION": version}
        refresh = ("nvidia-cdi-refresh.service", "nvidia-cdi-refresh.path")
        found += [
            Package("libnvidia-container1", version, words=words),
            Package("libnvidia-container-tools", version, depends=("libnvidia-container1=",), words=words),
            Package("nvidia-container-toolkit-base", version, files={**program("nvidia-ctk"), **units(*refresh)},
                    units=refresh, words=words),
            Package("nvidia-container-toolkit", version, words=words,
                    depends=("nvidia-container-toolkit-base=", "libnvidia-container-tools=")),
        ]  # fmt: skip
    return found


def archive_packages(distro: str, kernel: str) -> list[Package]:
    """What stands for the distribution's own archive: headers for the kernel that runs, and what RHEL has elsewhere."""
    version, _, rest = kernel.partition("-")
    build = f"/usr/lib/modules/{kernel}/build"
    headers = {
        f"{build}/Makefile": File(text="# SIMULATED kernel headers.\nclean modules:\n\t@true\n"),
        # dkms signs modules if the kernel's configuration says how.
        f"{build}/.config": File(text='CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_HASH="sha256"\n'),
        f"{build}/include/simulated.h": File(text="/* SIMULATED kernel headers. */\n"),
        f"{build}/scripts/sign-file": File("sign-file", mode=0o755),
    }
    if not distro.startswith("rhel"):
        found = [Package(f"linux-headers-{kernel}", version, files=headers)]
        if distro.startswith("ubuntu"):
            module = f"/usr/lib/modules/{kernel}/kernel/drivers/infiniband/simulated.ko"
            found.append(Package(f"linux-modules-extra-{kernel}", version, files={module: File(text="SIMULATED\n")}))
        return found
    release = rest.replace("-", "_") or "1"
    real = ("/bin/sh", "/usr/bin/sh", "systemd", "kmod", "python3", "openssl", "sudo", "procps-ng", "iproute",
            "ca-certificates", "openssh-server", "dracut", "grubby", "mokutil", "gcc", "make")  # fmt: skip
    ibstat = File(text="#!/bin/sh\n# SIMULATED: names the InfiniBand adapters; there are none.\n", mode=0o755)
    return [
        # `dnf install kernel-devel-$(uname -r)` finds it, although this kernel's name is not one of RHEL's.
        Package("kernel-devel", version, release, files=headers, provides=(f"kernel-devel-{kernel}",)),
        Package("kernel-devel-matched", version, release, depends=("kernel-devel=",),
                provides=(f"kernel-devel-matched-{kernel}",)),
        Package("kernel-headers", version, release, provides=(f"kernel-headers-{kernel}",)),
        Package("dkms", "3.2.2"),
        Package("python3-dnf-plugin-versionlock", "4.7.0"),
        Package("infiniband-diags", "57.0", depends=("libibumad",), files={"/usr/sbin/ibstat": ibstat}),
        Package("libibumad", "57.0"),
        Package("quench-lab-system", "1", provides=real),
    ]  # fmt: skip
