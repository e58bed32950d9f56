import re

import pytest

from quench import ManagedFile
from roles.base import BaseSettings
from roles.base.files import files

DATA = {"platform": "debian-12", "base_admin_keys": ["ssh-ed25519 AAAA x"]}


@pytest.fixture
def fenced():
    """Whether an automatic update leaves a package alone: apt's list, read as unattended-upgrade(8) does."""
    managed = files(BaseSettings.load("node1", DATA))
    texts = {file.dest: file.content for file in managed if isinstance(file, ManagedFile)}
    text = re.sub(r"//.*", "", texts["/etc/apt/apt.conf.d/52quench-updates"])
    names = re.findall(r'"([^"]+)";', re.search(r"Package-Blacklist \{(.*?)\}", text, re.DOTALL)[1])
    return lambda package: any(re.match(name, package) for name in names)


@pytest.mark.parametrize(
    "package",
    [
        "nvidia-driver", "nvidia-container-toolkit", "libnvidia-container1", "cuda-drivers", "linux-image-amd64",
        "nginx", "nginx-common", "libnginx-mod-http-js", "haproxy", "keepalived", "firewalld",
        "docker.io", "docker-ce", "containerd", "containerd.io", "podman", "runc", "crun",
    ],
)  # fmt: skip
def test_nothing_that_serves_or_holds_what_serves_is_updated_by_a_timer(fenced, package):
    assert fenced(package)


@pytest.mark.parametrize("package", ["openssl", "libssl3", "sudo", "openssh-server", "python3.11", "systemd", "curl"])
def test_all_else_is(fenced, package):
    assert not fenced(package)
