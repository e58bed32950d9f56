import grp
import hashlib
import os
import pwd
import shlex
from contextlib import contextmanager

import pytest
from pyinfra.api import Config, Inventory, State
from pyinfra.context import ctx_host, ctx_state

from quench import Engine, ManagedDirectory, ManagedFile, Refused, ca, facts, openpgp, secrets
from quench.files import CHECKOUT
from quench.operations import files, services
from quench.secrets import SecretRef
from roles.nginx import NginxSettings
from roles.vllm import VllmSettings
from roles.vllm.files import ROUTES

SERVER_NAME = "llm.example.org"
# A public key whose private half was thrown away.
REPOSITORY_KEY = CHECKOUT / "tests" / "golden" / "keys" / "repository.asc"
EXPORTER_ADDRESS = "10.0.30.14"
UNIT = "engine.service"


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """A CA's folder, with a certificate for SERVER_NAME."""
    folder = tmp_path_factory.mktemp("pki")
    ca.create(folder, "Test CA")
    ca.issue(folder, [SERVER_NAME])
    ca.issue(folder, [EXPORTER_ADDRESS])
    return folder


@pytest.fixture
def nginx_data(pki):
    return {
        "platform": "debian-12",
        "nginx_server_name": SERVER_NAME,
        "nginx_certificate": str(pki / f"{SERVER_NAME}.crt"),
        "nginx_private_key": f"file:{pki / SERVER_NAME}.key",
        "nginx_clients": {"team-a": client("key-of-team-a")},
    }


@pytest.fixture
def vllm_data():
    return {
        "platform": "debian-12",
        "vllm_version": "0.32.0+cpu",
        "vllm_models": {"llama": {"port": 8000, "revision": "1", "gpus": [0]}},
    }


@pytest.fixture
def gpu_data():
    """A host with eight H100 and a repository with a key of its own."""
    return {
        "platform": "debian-12",
        "nvidia_driver_gpus": {"h100-sxm": 8},
        "nvidia_driver_version": "580.95.05",
        "nvidia_driver_repository": "https://mirror.example.org/cuda",
        "nvidia_driver_repository_key": str(REPOSITORY_KEY),
        "nvidia_driver_repository_fingerprint": openpgp.fingerprint(REPOSITORY_KEY.read_text()),
    }


@pytest.fixture
def exporter_data(pki):
    return {
        "platform": "debian-12",
        "dcgm_exporter_address": EXPORTER_ADDRESS,
        "dcgm_exporter_clients": ["10.0.30.0/24"],
        "dcgm_exporter_certificate": str(pki / f"{EXPORTER_ADDRESS}.crt"),
        "dcgm_exporter_private_key": f"file:{pki / EXPORTER_ADDRESS}.key",
        "dcgm_exporter_client_ca": str(pki / "ca.crt"),
    }


@pytest.fixture
def engines():
    return [Engine("llama", 8000, ROUTES["generate"])]


@pytest.fixture
def make_client():
    return client


def client(key, **more):
    return {"keys": [{"sha256": hashlib.sha256(key.encode()).hexdigest(), "expires": "2099-01-01"}], **more}


@pytest.fixture
def problems():
    """All problems of a role's data on a host, as a run would find them."""

    def find(model, data):
        try:
            return list(model.load("node1", data).problems("node1"))
        except Refused as refused:
            return refused.problems

    return find


@pytest.fixture
def nginx_problems(problems, nginx_data):
    return lambda **changes: problems(NginxSettings, nginx_data | changes)


@pytest.fixture
def vllm_problems(problems, vllm_data):
    return lambda **changes: problems(VllmSettings, vllm_data | changes)


@pytest.fixture
def me():
    """Owner and group of the files that a test makes, as arguments of a managed file."""
    return {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


@contextmanager
def _current(name, data):
    inventory = Inventory(([(name, data)], {}))
    state = State(inventory, Config())
    host = inventory.get_host(name)
    with ctx_state.use(state), ctx_host.use(host):
        state.activate_host(host)
        yield


@pytest.fixture
def this_machine(tmp_path, monkeypatch):
    """This machine as pyinfra's current host, with Quench's state in a folder of the test. Facts are real."""
    state = tmp_path / "state"
    for module in (facts, files, services):
        monkeypatch.setattr(module, "STATE_DIRECTORY", str(state))
    with _current("@local", {}):
        yield state


@pytest.fixture
def commands():
    """The commands of an operation on a host that answers a fact's command with these lines.

    Answers may also be lines by a part of the command; `on` has further data of the host.
    """

    def run(operation, answers=(), on=None, **arguments):
        responses = answers if isinstance(answers, dict) else {"": list(answers)}
        data = {"fake_delay": 0, "fake_delay_jitter": 0, "fake_responses": responses}
        with _current("@fake", data | (on or {})):
            return [str(command) for command in operation._inner(**arguments)]

    return run


@pytest.fixture
def shell():
    """What a command runs under the lock."""

    def find(command):
        words = shlex.split(command)
        assert words[0] == "flock"
        return words[words.index("-c") + 1]

    return find


@pytest.fixture
def arguments():
    """The arguments that a command gives to its script, from the script's name on."""

    def find(command):
        words = shlex.split(command)
        return words[words.index("-c") + 2 : words.index("||")]

    return find


@pytest.fixture
def wanted(tmp_path, me):
    """The folder and the files of a role, one read by a reload and one by a start of UNIT."""
    root = tmp_path / "root"
    return [
        ManagedDirectory(f"{root}/etc/engine", mode=0o750, **me),
        ManagedFile(f"{root}/etc/engine/a.conf", "a\n", check="check-a", reloads=UNIT, **me),
        ManagedFile(f"{root}/etc/engine/b.conf", "b\n", mode=0o600, check="check-b", restarts=UNIT, **me),
    ]


@pytest.fixture
def install(this_machine):
    """The commands of an installation on this machine, as it is."""
    return lambda managed: list(files._install._inner(role="engine", managed=managed))


@pytest.fixture
def canary():
    return "canary-5f1d"


@pytest.fixture
def secret_file(tmp_path, me, monkeypatch, canary):
    """A file of UNIT with a secret in it."""
    monkeypatch.setenv("QUENCH_TEST_INSTALL", canary)
    secrets._resolve.cache_clear()
    secret = SecretRef("env:QUENCH_TEST_INSTALL")
    yield ManagedFile(f"{tmp_path}/key", f"key={secret}\n", mode=0o600, restarts=UNIT, secrets=(secret,), **me)
    secrets._resolve.cache_clear()
