"""What holds for every host, whatever its roles: nothing has drifted, failed or been left half-way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit

Manifests = dict[str, dict[str, "Entry"]]


@pytest.fixture(scope="module")
def files(manifests: Manifests) -> dict[str, Entry]:
    """All managed files of all roles."""
    return {path: entry for role in manifests.values() for path, entry in role.items()}


def test_no_unit_has_failed(host: Host, unit: Callable[[str], Unit]) -> None:
    failed = [line.split()[0] for line in host.check_output("systemctl --failed --plain --no-legend").splitlines()]
    assert failed == [], "\n".join(unit(name).journal() for name in failed)


def test_no_managed_file_has_drifted(host: Host, files: dict[str, Entry]) -> None:
    names = " ".join(f"'{path}'" for path in files)
    lines = host.run(f"sha256sum -- {names}").stdout.splitlines()
    found = {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}
    drifted = [path for path, entry in files.items() if found.get(path) != entry.sha256]
    assert drifted == [], "edited or removed since the last run"


def test_managed_files_have_their_modes_and_owners(host: Host, files: dict[str, Entry]) -> None:
    names = " ".join(f"'{path}'" for path in files)
    lines = host.run(f"stat -c '%a %U %G %n' -- {names}").stdout.splitlines()
    found = {path: (int(mode, 8), owner, group) for mode, owner, group, path in (line.split(" ", 3) for line in lines)}
    wanted = {path: (entry.mode, entry.owner, entry.group) for path, entry in files.items()}
    assert found == wanted


def test_no_file_belongs_to_two_roles(manifests: Manifests, files: dict[str, Entry]) -> None:
    assert sum(len(role) for role in manifests.values()) == len(files)


def test_no_install_was_left_half_way(host: Host) -> None:
    found = host.check_output(
        "find /etc /home /var/lib/quench /run -xdev "
        r"\( -name '*.quench-new' -o -path '/var/lib/quench/*/.*.new' -o -path '/run/quench.??????' \) -print"
    )
    assert found == ""


def test_what_quench_knows_of_the_host_is_for_root_alone(host: Host) -> None:
    folder = host.file("/var/lib/quench/manifest")
    assert (folder.mode, folder.user) == (0o700, "root")
