"""What `packages.sh` does when a set cannot be had: the script itself, with an apt and a dpkg of the test's own."""

import os
import subprocess

import pytest

from quench.files import CHECKOUT

SCRIPT = CHECKOUT / "quench" / "remote" / "packages.sh"
OLD, NEW = "libcuda1 1-1\nnvidia-smi 1-1\n", "libcuda1 2\nnvidia-smi 2"
# What is installed is in a file, NAME VERSION on each line. `stuck` has the names that apt cannot install.
_PROGRAMS = {
    "apt-get": """\
words=
for word; do
    case $words$word in
    update) cat "$FAKE/update"; exit ;;
    install) words=: ;;
    :-*) ;;
    :*-) sed -i "/^${word%-} /d" "$FAKE/installed" ;;
    :*=*) grep -qx "$word" "$FAKE/stuck" ||
        { sed -i "/^${word%%=*} /d" "$FAKE/installed"; echo "${word%%=*} ${word#*=}" >>"$FAKE/installed"; } ;;
    :*) echo "$word 7-1" >>"$FAKE/installed" ;;
    esac
done
sort -o "$FAKE/installed" "$FAKE/installed"
""",
    "apt-cache": 'cat "$FAKE/offered"\n',
    "dpkg": "",
    "dpkg-query": """\
case $* in
*Version*) grep -v '^dkms ' "$FAKE/installed" | sed 's/^/ii |/' ;;
*) for name; do :; done; ! grep -q "^$name " "$FAKE/installed" || printf 'ii ' ;;
esac
""",
    "systemctl": "",
}


class Host:
    """A host with the former set, a repository that has the new one, and the repository's file."""

    def __init__(self, folder):
        self.folder = folder
        self.source = folder / "quench-nvidia.sources"
        for name, text in _PROGRAMS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}")
            path.chmod(0o755)
        (folder / "run").mkdir()
        offered = [f"{name} | {version}-1 | a mirror" for name in ("libcuda1", "nvidia-smi") for version in (1, 2)]
        self.write("offered", "\n".join([*offered, "dkms | 7-1 | a mirror"]))
        for name, text in (("update", ""), ("stuck", ""), ("installed", OLD), (self.source.name, "")):
            self.write(name, text)

    def write(self, name, text):
        (self.folder / name).write_text(text)

    @property
    def installed(self):
        return (self.folder / "installed").read_text()

    def run(self, wanted=NEW, check="true"):
        """The script's exit code and its lines."""
        script = SCRIPT.read_text().replace("/run/", f"{self.folder}/run/")
        words = ["apt", "nvidia-* libcuda1", check, "", wanted, str(self.source)]
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", script, "packages.sh", *words],
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": path, "FAKE": str(self.folder)},
        )  # fmt: skip
        return done.returncode, done.stderr


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_a_set_that_can_be_had_is_installed_and_its_repository_stays(host):
    assert host.run() == (0, "")
    assert host.installed == "libcuda1 2-1\nnvidia-smi 2-1\n"
    assert host.source.exists()


@pytest.mark.parametrize("says", ["W: GPG error: a mirror: NO_PUBKEY 1", "E: The repository 'x' is not signed."])
def test_a_wrong_signature_leaves_no_repository_that_would_fail_every_other_update(host, says):
    host.write("update", f"{says}\n")
    code, said = host.run()
    assert code == 1
    assert "signature could not be verified" in said
    assert "nothing was installed" in said
    assert (host.installed, host.source.exists()) == (OLD, False)


def test_a_set_that_no_repository_has_leaves_nothing_that_could_bring_it_later(host):
    code, said = host.run(wanted=f"{NEW}\nlinux-headers-1 *")
    assert code == 1
    assert "no repository of this host has: linux-headers-1" in said
    assert (host.installed, host.source.exists()) == (OLD, False)


def test_a_check_that_fails_brings_the_former_set_back_and_takes_the_repository_away(host):
    code, said = host.run(check="false")
    assert code == 1
    assert "the former packages are back" in said
    assert (host.installed, host.source.exists()) == (OLD, False)


def test_a_former_package_that_does_not_come_back_is_named(host):
    host.write("stuck", "libcuda1=1-1\n")
    code, said = host.run(check="false")
    assert code == 1
    assert "could not be brought back in full: libcuda1; the next run tries again" in said
    assert (host.installed, host.source.exists()) == ("libcuda1 2-1\nnvidia-smi 1-1\n", False)


def test_a_failure_that_changed_no_package_of_the_set_does_not_say_that_nothing_was_installed(host):
    host.write("stuck", "libcuda1=2-1\nnvidia-smi=2-1\n")
    code, said = host.run(wanted=f"{NEW}\ndkms *")
    assert code == 1
    assert "the set is as it was" in said
    assert "nothing was installed" not in said
    assert (host.installed, host.source.exists()) == (f"dkms 7-1\n{OLD}", False)
