import configparser
import os
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from quench.files import CHECKOUT

REGISTRIES = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|pytorch\.org/whl|npmjs\.org|docker\.io(?=/)|ghcr\.io|quay\.io|nvcr\.io|gcr\.io"
    r"|[a-z0-9.-]*artifactory[a-z0-9.-]*\.[a-z]+|(?:deb|snapshot|security)\.debian\.org|archive\.ubuntu\.com)\b"
)
# Folders that only a machine on which this is written or built has.
BUILD_MACHINE = re.compile(r"(?<![\w.~$}{-])/(?:work|workspace|root|Users|builds|github|var/jenkins_home)/")


@pytest.fixture(scope="module")
def files():
    """Every file of the repository, with those that are not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [CHECKOUT / name for name in names if name]
    return {str(path.relative_to(CHECKOUT)): path.read_text(errors="replace") for path in paths if path.is_file()}


def found(pattern, files):
    return {f"{name}: {match[0]}" for name, text in files.items() for match in pattern.finditer(text)}


def sources_of_this_machine():
    """Where pip and uv on this machine take packages from, without what every machine could have."""
    settings = [value for name, value in os.environ.items() if re.match(r"(PIP|UV)_.*(INDEX|FIND_LINKS)", name)]
    for path in (
        Path("/etc/pip.conf"),
        Path("~/.config/pip/pip.conf").expanduser(),
        Path("~/.pip/pip.conf").expanduser(),
    ):
        config = configparser.RawConfigParser()
        config.read(path)
        settings += [value for section in config.sections() for key, value in config[section].items() if "index" in key]
    parts = [urlsplit(word) for value in settings for word in value.split()]
    names = {part.hostname or part.path for part in parts}
    return {name for name in names if len(name) > 4 and name not in ("localhost", "127.0.0.1")}


def test_the_repository_has_files_to_look_at(files):
    assert {"pyproject.toml", "quench/files.py", "tests/meta/test_repository.py"} <= set(files)


def test_no_file_names_a_registry_since_only_the_settings_of_a_site_do(files):
    assert found(REGISTRIES, files) == set()


def test_no_file_names_where_this_machine_takes_its_packages_from(files):
    names = sources_of_this_machine()
    assert {f"{name}: {source}" for name, text in files.items() for source in names if source in text} == set()


def test_no_file_names_a_folder_of_a_build_machine(files):
    assert found(BUILD_MACHINE, files) == set()


@pytest.mark.parametrize("path", ["/work" + "/main", '"/root' + '/.cache"', "cd /Users" + "/me", "(/builds" + "/1)"])
def test_the_rule_on_folders_finds_what_it_is_for(path):
    assert BUILD_MACHINE.search(path)


@pytest.mark.parametrize("path", ["tests/root/x", "https://a.example.org/root/x", "/rootless/", "$HOME/root/x"])
def test_the_rule_on_folders_leaves_other_paths_alone(path):
    assert not BUILD_MACHINE.search(path)


@pytest.mark.parametrize("script", sorted((CHECKOUT / "quench" / "remote").iterdir()), ids=lambda path: path.name)
def test_a_script_for_hosts_opens_with_what_it_does_and_what_it_is_given(script):
    comment = [line for line in script.read_text().split("set -eu")[0].splitlines() if line]
    assert script.suffix == ".sh"
    assert comment
    assert all(line.startswith("#") for line in comment)
    assert "Arguments: " in "\n".join(comment)


def test_no_private_key_is_in_the_repository(files):
    keys = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{40}")
    assert found(keys, files) == set()


def test_the_contracts_of_imports_know_all_modules_and_roles():
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = {contract["name"]: contract for contract in contracts}
    modules = {f"quench.{path.stem}" for path in (CHECKOUT / "quench").glob("*.py")} - {"quench.__init__", "quench.cli"}
    modules |= {f"quench.{path.parent.name}" for path in (CHECKOUT / "quench").glob("*/__init__.py")} - {"quench.lab"}
    assert set(found["The lab stands beside the product, not in it"]["source_modules"]) == modules
    roles = {f"roles.{path.parent.name}" for path in (CHECKOUT / "roles").glob("*/__init__.py")}
    assert set(found["No role knows another"]["modules"]) == roles
