import hashlib
import subprocess

import pytest

from quench.operations import downloads
from quench.operations.commands import REMOTE


def test_a_lock_file_travels_on_standard_input_too(this_machine):
    (command,) = downloads._python_environment._inner(
        folder="/opt/x/1", lock="vllm==1 --hash=sha256:00\n", index_url=None
    )
    assert command.connector_arguments["_stdin"].startswith("vllm==1")
    assert "vllm==1" not in str(command)


def test_an_environment_is_built_unless_it_is_complete_for_this_very_lock(arguments, commands):
    wanted = {"folder": "/opt/vllm/1", "lock": "vllm==1\n", "index_url": None}
    sha256 = hashlib.sha256(b"vllm==1\n").hexdigest()
    assert commands(downloads._python_environment, [sha256], **wanted) == []
    for answer in ([], [sha256[::-1]]):
        (command,) = commands(downloads._python_environment, answer, **wanted)
        assert arguments(command) == ["python_environment.sh", "/opt/vllm/1", sha256, ""]


def test_a_model_is_fetched_unless_its_list_of_checksums_is_the_pinned_one(arguments, commands):
    wanted = {"folder": "/srv/models/a/1", "url": "http://mirror.example.org/a", "sha256": "ab" * 32}
    assert commands(downloads._model_files, ["ab" * 32], **wanted) == []
    (command,) = commands(downloads._model_files, ["cd" * 32], **wanted)
    assert arguments(command) == ["fetch_model.sh", "http://mirror.example.org/a", "/srv/models/a/1", "ab" * 32]


@pytest.mark.parametrize("list_of_another", [True, False])
@pytest.mark.parametrize("folder_of_the_list", ["", "./"])
def test_a_model_has_no_file_that_its_list_does_not_name(tmp_path, list_of_another, folder_of_the_list):
    """Such as one that an interrupted fetch of another list has left."""
    source, folder = tmp_path / "source", tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    for name in ("a.safetensors", "deep/b.json"):
        (source / name).write_text(name)
    names = [f"{folder_of_the_list}{name}" for name in ("a.safetensors", "deep/b.json")]
    sums = subprocess.run(["sha256sum", *names], cwd=source, capture_output=True, text=True, check=True).stdout
    (source / "SHA256SUMS").write_text(sums)
    if list_of_another:
        (tmp_path / "model.part" / "deep").mkdir(parents=True)
        for name in ("c.safetensors", "deep/b"):
            (tmp_path / "model.part" / name).write_text("left behind")
    script = REMOTE / "fetch_model.sh"
    pin = hashlib.sha256(sums.encode()).hexdigest()
    subprocess.run(["sh", str(script), source.as_uri(), str(folder), pin], check=True)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["SHA256SUMS", "a.safetensors", "deep/b.json"]


def test_what_stands_in_an_argument_is_no_shell(commands):
    wanted = {"folder": "/srv/models/$(reboot)/1", "url": "http://a/;reboot", "sha256": "ab" * 32}
    (command,) = commands(downloads._model_files, [], **wanted)
    assert f"'http://a/;reboot' '/srv/models/$(reboot)/1' {'ab' * 32} ||" in command
