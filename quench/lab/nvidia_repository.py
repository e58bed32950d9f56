"""The fixture repositories: built here from `nvidia_packages/`, signed, kept in the cache. All contents SIMULATED.

The package managers on the hosts do the real thing with them: signatures, pins, dependencies, scripts.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quench.lab.nvidia_driver import DRIVERS, driver_set
from quench.lab.nvidia_package import File, Package, versions
from quench.lab.nvidia_scripts import after_install, after_removal, before_removal, rpm_spec
from quench.lab.nvidia_sets import archive_packages, container_packages, other_packages
from quench.lab.progress import LabError, step

_SOURCES = Path(__file__).parent / "nvidia_packages"
_SIGN_FILE = Path(__file__).parent / "gpu_host" / "sign-file"
_ARCHITECTURE = "x86_64"
# Releases that have the same packages.
_DEBS = {"debian": ("debian12", "debian13"), "ubuntu": ("ubuntu2204", "ubuntu2404")}
_RPMS = ("rhel9", "rhel10")
_KEYS = {"key": "NVIDIA (SIMULATED by quench lab)", "other-key": "Somebody else (SIMULATED by quench lab)"}


def folder(cache: Path) -> Path:
    """Where the repositories of the present sources lie, built or not."""
    digest = hashlib.sha256(platform.release().encode())
    here = Path(__file__).parent
    for path in [*sorted(_SOURCES.iterdir()), _SIGN_FILE, *sorted(here.glob("nvidia_*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return cache / "nvidia" / digest.hexdigest()[:12]


def key_file(cache: Path, name: str = "key") -> Path:
    """The armored public key, which outlives the repositories: `key` signs them, `other-key` signs nothing."""
    return cache / "nvidia" / f"{name}.asc"


def ensure_repository(cache: Path) -> Path:
    """Build the repositories unless they are there. Returns their folder, which the mirror serves as `/nvidia/`."""
    root = folder(cache)
    if root.exists():
        return root
    part = root.with_suffix(f".part-{os.getpid()}")
    with step("building the SIMULATED NVIDIA repositories"):
        try:
            _keys(cache)
            part.mkdir(parents=True)
            for name in _KEYS:
                shutil.copy(key_file(cache, name), part)
            shutil.copy(cache / "nvidia" / "key.gpg", part)
            _Builder(cache, part).build()
            shutil.rmtree(part / "work")
            # Another run may have been quicker.
            if not root.exists():
                part.replace(root)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run(["gpgconf", "--kill", "all"], env=_environment(cache), check=False, capture_output=True)
    return root


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "GNUPGHOME": str(cache / "nvidia" / "gnupg"), "LC_ALL": "C.UTF-8"}


def _run(*command: str, cache: Path | None = None, cwd: Path | None = None) -> str:
    environment = _environment(cache) if cache else {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)[:200]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _gpg(cache: Path, *arguments: str) -> str:
    return _run("gpg", "--batch", "--yes", "--pinentry-mode=loopback", "--passphrase=", *arguments, cache=cache)


def _keys(cache: Path) -> None:
    """Make the keys of this cache, once."""
    home = cache / "nvidia" / "gnupg"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    for name, user in _KEYS.items():
        path = key_file(cache, name)
        if path.exists():
            continue
        # RSA: what every rpm can check.
        _gpg(cache, "--quick-generate-key", user, "rsa2048", "sign", "never")
        _gpg(cache, "--export", f"--output={path.with_suffix('.gpg')}", f"={user}")
        _gpg(cache, "--armor", "--export", f"--output={path}", f"={user}")


class _Builder:
    """One build: packages in `work`, repositories in `root`."""

    def __init__(self, cache: Path, root: Path) -> None:
        self.cache = cache
        self.root = root
        self.work = root / "work"
        self.work.mkdir()

    def build(self) -> None:
        """Everything."""
        kernel = platform.release()
        repos = self.root / "compute" / "cuda" / "repos"
        container = self.root / "libnvidia-container" / "stable"
        archive = self.root / "archive"
        others = other_packages()
        for family, distros in _DEBS.items():
            drivers = [driver_set(family, version) for version in DRIVERS]
            pool = self.debs(family, [*drivers, others])
            kernels = self.debs(f"{family}-archive", [archive_packages(family, kernel)])
            for distro in distros:
                self.apt_repository(repos / distro / _ARCHITECTURE, pool)
                self.apt_repository(archive / distro, kernels)
        self.apt_repository(container / "deb" / "amd64", self.debs("container", [container_packages()]))
        other_rpms = self.rpms("other", [others])
        for distro in _RPMS:
            drivers = [driver_set(distro, version) for version in DRIVERS]
            self.rpm_repository(repos / distro / _ARCHITECTURE, [*self.rpms(distro, drivers), *other_rpms])
            kernels = self.rpms(f"{distro}-archive", [archive_packages(distro, kernel)])
            self.rpm_repository(archive / distro, kernels)
        rpms = self.rpms("container", [container_packages()])
        self.rpm_repository(container / "rpm" / _ARCHITECTURE, rpms)

    def debs(self, name: str, groups: Iterable[list[Package]]) -> list[Path]:
        """Build .deb files."""
        pool = self.work / name
        pool.mkdir()
        packages = [(package, group) for group in groups for package in group]
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            return list(workers.map(lambda item: self._deb(pool, *item), packages))

    def _deb(self, pool: Path, package: Package, group: list[Package]) -> Path:
        target = pool / f"{package.name}_{package.version}-{package.release}_amd64.deb"
        with tempfile.TemporaryDirectory(dir=pool) as tree:
            self._lay_out(package, Path(tree))
            control = Path(tree) / "DEBIAN"
            control.mkdir(mode=0o755)
            Path(tree).chmod(0o755)
            _write(control / "control", deb_control(package, group))
            scripts = {
                "postinst": after_install(package, "deb"),
                "prerm": before_removal(package, "deb"),
                "postrm": after_removal(package),
            }
            for script, text in scripts.items():
                _write(control / script, text, 0o755)
            if any(".so." in path for path in package.files):
                _write(control / "triggers", "activate-noawait ldconfig\n")
            conffiles = [path for path in package.files if path.startswith("/etc/")]
            if conffiles:
                _write(control / "conffiles", "".join(f"{path}\n" for path in conffiles))
            _run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, str(target))
        return target

    def _lay_out(self, package: Package, tree: Path) -> None:
        for path, file in package.files.items():
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.link:
                target.symlink_to(file.link)
            elif file.source.endswith(".so"):
                shutil.copy(self._library(file.source, package), target)
            else:
                _write(target, _filled(file, package), file.mode)

    def _library(self, name: str, package: Package) -> Path:
        target = self.work / f"{name}.{package.version}"
        if not target.exists():
            source = self.work / f"{name}.{package.version}.{os.urandom(4).hex()}.c"
            source.write_text(_filled(File(name.replace(".so", ".c")), package))
            new = source.with_suffix(".new")
            _run("gcc", "-shared", "-fPIC", "-O1", "-s", f"-Wl,-soname,{name}.1", "-o", str(new), str(source))
            new.replace(target)
        return target

    def apt_repository(self, target: Path, debs: list[Path]) -> None:
        """A flat repository, signed both ways."""
        target.mkdir(parents=True)
        for deb in debs:
            os.link(deb, target / deb.name)
        _write(target / "Packages", _run("apt-ftparchive", "packages", ".", cwd=target))
        _run("gzip", "-k", "-n", "Packages", cwd=target)
        options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in (
            ("Origin", "NVIDIA"), ("Label", "NVIDIA CUDA"), ("Description", "SIMULATED by quench lab"))]  # fmt: skip
        if "archive" in target.parts:
            options = ["-oAPT::FTPArchive::Release::Origin=quench-lab"]
        _write(target / "Release", _run("apt-ftparchive", *options, "release", ".", cwd=target))
        self.sign(target / "Release", target / "InRelease", "--clearsign")
        self.sign(target / "Release", target / "Release.gpg", "--armor", "--detach-sign")

    def rpms(self, name: str, groups: Iterable[list[Package]]) -> list[Path]:
        """Build .rpm files, and sign them."""
        top = self.work / f"{name}-rpm"
        specs = []
        for group in groups:
            for package in group:
                self._lay_out(package, top / "tree" / package.name / package.full_version.replace(":", "_"))
            for same in _one_spec_each(group):
                spec = top / f"{same[0].name}-{same[0].version}.spec"
                _write(spec, rpm_spec(same, group, top / "tree"))
                specs.append(spec)
        out = top / "out"
        # Here, since two builds at a time would both make it.
        (out / _ARCHITECTURE).mkdir(parents=True)

        def build(spec: Path) -> None:
            place = spec.with_suffix(".build")
            macros = {
                "_topdir": place,
                "_rpmdir": out,
                "_dbpath": place / "db",
                "_tmppath": place / "scratch",
                "_binary_payload": "w1.gzdio",
            }
            defines = [f"--define={name} {value}" for name, value in macros.items()]
            _run("rpmbuild", "-bb", "--quiet", "--nodeps", "--target=x86_64-linux", *defines, str(spec))

        with ThreadPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(build, specs))
        found = sorted(out.rglob("*.rpm"))
        macros = {
            "_gpg_name": _KEYS["key"],
            "_gpg_path": self.cache / "nvidia" / "gnupg",
            "__gpg": shutil.which("gpg"),
            "_gpg_sign_cmd_extra_args": "--batch --pinentry-mode=loopback",
        }
        defines = [f"--define={name} {value}" for name, value in macros.items()]
        _run("rpmsign", "--addsign", *defines, *map(str, found), cache=self.cache)
        return found

    def rpm_repository(self, target: Path, rpms: list[Path]) -> None:
        """A repository of dnf, its metadata signed too."""
        target.mkdir(parents=True)
        for rpm in rpms:
            os.link(rpm, target / rpm.name)
        _run("createrepo_c", "--quiet", "--simple-md-filenames", str(target))
        metadata = target / "repodata" / "repomd.xml"
        self.sign(metadata, metadata.with_suffix(".xml.asc"), "--armor", "--detach-sign")

    def sign(self, path: Path, output: Path, *how: str) -> None:
        """Sign a file with the repositories' key."""
        _gpg(self.cache, "--local-user", f"={_KEYS['key']}", *how, f"--output={output}", str(path))


def _one_spec_each(group: list[Package]) -> list[list[Package]]:
    """Packages that one spec can build: of one version, since a spec has one, and without a file in common."""
    specs: list[list[Package]] = []
    for package in group:
        for spec in specs:
            same = (spec[0].version, spec[0].release) == (package.version, package.release)
            if same and not any(other.files.keys() & package.files.keys() for other in spec):
                spec.append(package)
                break
        else:
            specs.append([package])
    return specs


def deb_control(package: Package, group: list[Package]) -> str:
    """The control file of a .deb."""
    known = versions(package, group)
    depends = [f"{name[:-1]} (= {known[name[:-1]]})" if name.endswith("=") else name for name in package.depends]
    fields = {
        "Package": package.name,
        "Version": package.full_version,
        "Architecture": "amd64",
        "Maintainer": "quench lab <lab@example.org>",
        "Depends": ", ".join(depends),
        "Provides": ", ".join(package.provides),
        "Conflicts": ", ".join(package.conflicts),
        "Replaces": ", ".join(package.conflicts),
        "Description": "SIMULATED by quench lab",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)


def _filled(file: File, package: Package) -> str:
    if not file.source:
        return file.text
    path = _SIGN_FILE if file.source == "sign-file" else _SOURCES / file.source
    text = path.read_text()
    for word, value in package.words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)
