import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from jinja2 import UndefinedError

from quench import ManagedFile, template, to_json, to_yaml
from quench.secrets import SecretRef

LOCALE = {"settings": {"locale": "C.UTF-8"}}


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_SECRET", "canary-5f1d")
    return SecretRef("env:QUENCH_TEST_SECRET")


def test_a_template_opens_with_who_manages_it_and_what_to_change_instead():
    first, second, *body = template("base", "/etc/default/locale", LOCALE).splitlines()
    assert first == "# Managed by Quench, role base, from templates/base/etc/default/locale.j2."
    assert "base_*" in second
    assert body


def test_the_header_is_a_comment_of_the_files_own_language():
    first = template("base", "/etc/default/locale", LOCALE, comment="//").splitlines()[0]
    assert first.startswith("// Managed by Quench")


def test_a_file_carries_nothing_of_the_run():
    # No date, no time, no version, no host: the same settings give the same bytes on any day.
    text = template("base", "/etc/default/locale", LOCALE) + to_yaml("vllm", {}) + to_json("nginx", {})
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d|\bv?\d+\.\d+\.\d+", text)


def test_a_value_that_a_template_names_and_nobody_gives_is_an_error():
    with pytest.raises(UndefinedError, match="locale"):
        template("base", "/etc/default/locale", {"settings": {"lang": "C.UTF-8"}})


def test_yaml_gives_back_the_data_and_keeps_its_order():
    data = {"port": 8000, "host": "127.0.0.1", "colon": "a: b # c", "flag": True, "list": [1, "no"], "nothing": None}
    text = to_yaml("vllm", data)
    assert yaml.safe_load(text) == data
    assert list(yaml.safe_load(text)) == list(data)
    assert text.startswith("# Managed by Quench, role vllm, from roles/vllm/files.py.")


def test_json_gives_back_the_data_behind_a_header_that_json_allows():
    data = {"keys": {"a": [1, None, 'quo"te', "ü"]}}
    text = to_json("nginx", data)
    loaded = json.loads(text)
    assert loaded.pop("//").startswith("Managed by Quench, role nginx, from roles/nginx/files.py.")
    assert loaded == data
    assert text.endswith("}\n")


def test_a_secret_stands_in_the_content_as_its_reference_and_in_the_bytes_for_the_host_as_its_value(secret):
    file = ManagedFile("/etc/x", f"token = {secret}\nagain = {secret}\n", mode=0o600, secrets=(secret,))
    assert file.content.count("<secret env:QUENCH_TEST_SECRET>") == 2
    assert file.revealed() == b"token = canary-5f1d\nagain = canary-5f1d\n"


def test_a_reference_that_is_not_declared_is_not_revealed(secret):
    assert ManagedFile("/etc/x", str(secret)).revealed() == str(secret).encode()


def test_the_hash_of_a_file_is_that_of_its_value_and_so_moves_with_it(secret):
    hidden = ManagedFile("/etc/x", f"{secret}", mode=0o600, secrets=(secret,))
    assert hidden.sha256() == ManagedFile("/etc/x", "canary-5f1d").sha256()
    assert hidden.sha256() != ManagedFile("/etc/x", f"{secret}").sha256()


def test_printing_a_file_shows_no_secret(secret):
    file = ManagedFile("/etc/x", f"{secret}", mode=0o600, secrets=(secret,))
    file.revealed()
    assert "canary-5f1d" not in f"{file} {file!r}"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601])
def test_a_file_with_a_secret_that_is_open_to_others_cannot_be_made(secret, mode):
    with pytest.raises(ValueError, match=f"open to everyone: mode {mode:o}"):
        ManagedFile("/etc/x", f"{secret}", mode=mode, secrets=(secret,))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_a_file_with_a_secret_for_its_owner_and_group_can_be_made(secret, mode):
    assert ManagedFile("/etc/x", f"{secret}", mode=mode, secrets=(secret,)).mode == mode


def test_the_same_settings_give_the_same_bytes_in_another_process(nginx_data, make_client):
    # Sets of Python have another order in each process.
    clients = {f"c{i}": make_client(f"k{i}", requests_per_minute=60 + i, concurrent=1 + i) for i in range(9)}
    script = (
        "import datetime, sys\n"
        "sys.path.insert(0, '.')\n"
        "from quench import Certificate, Engine, ManagedFile\n"
        "from roles.nginx import NginxSettings, files\n"
        "from roles.vllm.files import ROUTES\n"
        f"settings = NginxSettings.load('node1', {nginx_data | {'nginx_clients': clients}!r})\n"
        "managed = files(settings, [Engine(kind, 1, ROUTES[kind]) for kind in ROUTES], Certificate())\n"
        "print([file.content for file in managed if isinstance(file, ManagedFile)])\n"
    )
    trees = {
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(trees) == 1
    assert b"c8" in trees.pop()
