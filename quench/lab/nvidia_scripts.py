"""Maintainer scripts of the fixture packages, and the spec files of the RPMs."""

from __future__ import annotations

from pathlib import Path

from quench.lab.nvidia_package import Package, versions

# As NVIDIA's packages do it: a build that fails does not fail the package manager.
# What dkms has of another version or flavour goes first: it would take those modules for the kernel's own, keep them,
# and put them back later.
_DKMS_BUILD = """\
dkms status -m nvidia | sed -n 's#^nvidia/\\([^,:]*\\).*#\\1#p' | sort -u | while read -r other; do
    dkms remove -m nvidia -v "$other" --all >/dev/null 2>&1 || true
done
dkms add -m nvidia -v {version} >/dev/null 2>&1 || true
for modules in /lib/modules/*/; do
    kernel=$(basename "$modules")
    if [ -e "$modules/build" ]; then
        echo "Building nvidia {version} for $kernel with the real dkms (SIMULATED module)"
        dkms install -m nvidia -v {version} -k "$kernel" ||
            echo "Error! Building nvidia {version} for $kernel failed" >&2
    else
        echo "Module build for kernel $kernel was skipped since the kernel headers do not seem to be installed." >&2
    fi
done
"""
_DKMS_REMOVE = "dkms remove -m nvidia -v {version} --all >/dev/null 2>&1 || true\n"
# rpm runs the old package's %preun after the new one's %post: it must not take away what that has built.
_RPM_BUILT = "echo {name} >/var/lib/dkms/nvidia/{version}/built-by\n"
_RPM_KEEP = """\
built_by=$(cat /var/lib/dkms/nvidia/{version}/built-by 2>/dev/null || true)
if [ "$1" != 0 ] || [ "$built_by" != {name} ]; then exit 0; fi
"""
_USER = "id {user} >/dev/null 2>&1 || useradd --system --no-create-home --home-dir / --shell /usr/sbin/nologin {user}\n"
# What debhelper writes.
_DEB_UNIT = """\
if deb-systemd-helper --quiet was-enabled {unit}; then
    deb-systemd-helper enable {unit} >/dev/null || true
else
    deb-systemd-helper update-state {unit} >/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
    if [ -n "$2" ]; then action=restart; else action=start; fi
    deb-systemd-invoke $action {unit} >/dev/null || true
fi
"""
_RELOAD = "[ ! -d /run/systemd/system ] || systemctl --system daemon-reload >/dev/null || true\n"


def after_install(package: Package, kind: str) -> str:
    """The script that runs once the files are there: `postinst` or `%post`."""
    text = "".join(_USER.format(user=user) for user in package.users)
    if package.dkms:
        text += _DKMS_BUILD.format(version=package.dkms)
    if kind == "deb":
        text += "".join(_DEB_UNIT.format(unit=unit) for unit in package.units)
        return f'#!/bin/sh\n# SIMULATED package.\nset -e\n[ "$1" = configure ] || exit 0\n{text}exit 0\n'
    if package.dkms:
        text += _RPM_BUILT.format(version=package.dkms, name=package.name)
    if any(".so." in path for path in package.files):
        text += "ldconfig\n"
    if any(path.endswith(".service") for path in package.files):
        text += _RELOAD
    return text


def before_removal(package: Package, kind: str) -> str:
    """The script that runs while the files are still there: `prerm` or `%preun`."""
    text = _DKMS_REMOVE.format(version=package.dkms) if package.dkms else ""
    if kind == "deb":
        stop = "".join(f"deb-systemd-invoke stop {unit} >/dev/null || true\n" for unit in package.units)
        if stop:
            text += f'if [ "$1" = remove ] && [ -d /run/systemd/system ]; then\n{stop}fi\n'
        return f"#!/bin/sh\n# SIMULATED package.\nset -e\n{text}exit 0\n"
    if package.dkms:
        text = _RPM_KEEP.format(version=package.dkms, name=package.name) + text
    units = " ".join(path.rsplit("/", 1)[1] for path in package.files if path.endswith((".service", ".path")))
    if units:
        text += f'[ "$1" != 0 ] || systemctl --no-reload disable --now {units} >/dev/null 2>&1 || true\n'
    return text


def after_removal(package: Package) -> str:
    """`postrm` of a .deb."""
    purge = "".join(f"deb-systemd-helper purge {unit} >/dev/null || true\n" for unit in package.units)
    text = f'if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null; then\n{purge}fi\n' if purge else ""
    return f"#!/bin/sh\n# SIMULATED package.\nset -e\n{text}{_RELOAD if package.units else ''}exit 0\n"


def rpm_spec(packages: list[Package], group: list[Package], trees: Path) -> str:
    """One spec for all packages of one version. The package that it is named after has no files, so it is not built."""
    first = packages[0]
    known = versions(first, group)
    lines = [
        "%global debug_package %{nil}",
        "%global __os_install_post %{nil}",
        "%global _build_id_links none",
        f"Name: {first.name}-simulated",
        f"Version: {first.version}",
        f"Release: {first.release}",
        "Summary: SIMULATED by quench lab",
        "License: Apache-2.0",
        "AutoReqProv: no",
        "%description",
        "SIMULATED by quench lab.",
    ]
    install = []
    for package in packages:
        full = package.full_version
        tree = trees / package.name / full.replace(":", "_")
        install.append(f'[ ! -d "{tree}" ] || cp -a "{tree}/." "%{{buildroot}}/"')
        lines += [f"%package -n {package.name}", "Summary: SIMULATED by quench lab", "AutoReqProv: no"]
        lines += [f"Epoch: {package.epoch}"] if package.epoch else []
        lines += [
            f"Requires: {name[:-1]} = {known[name[:-1]]}" if name.endswith("=") else f"Requires: {name}"
            for name in package.depends
        ]
        # Only of a kernel module does a package ask for a version.
        lines += [f"Provides: {name}{f' = {full}' if package.dkms else ''}" for name in package.provides]
        lines += [f"Conflicts: {name}" for name in package.conflicts]
        lines += [f"%description -n {package.name}", "SIMULATED by quench lab."]
        # Of two versions at once, as during a change, ldconfig links to the newer.
        linked = "ldconfig\n" if any(".so." in path for path in package.files) else ""
        sections = (
            ("post", after_install(package, "rpm")),
            ("preun", before_removal(package, "rpm")),
            ("postun", linked),
        )
        for section, script in sections:
            if script:
                # `%` is rpm's own.
                lines += [f"%{section} -n {package.name}", script.replace("%", "%%").rstrip()]
        lines += [f"%files -n {package.name}"]
        for path, file in package.files.items():
            config = "%config(noreplace) " if path.startswith("/etc/") else ""
            lines.append(f'{config}{"" if file.link else f"%attr({file.mode:o},root,root) "}"{path}"')
    return "\n".join([*lines, "%install", 'mkdir -p "%{buildroot}"', *install, ""])
