"""What `verify.sh` says of a driver: the script itself, with an nvidia-smi and a libcuda of the test's own."""

import os
import subprocess

import pytest

from quench.files import CHECKOUT

SCRIPT = CHECKOUT / "roles" / "nvidia_driver" / "verify.sh"
VERSION = "580.95.05"
# Takes the place of Python's own, which would load the library.
_CTYPES = """
class c_int:
    value = 0


def byref(count):
    return count


class CDLL:
    def __init__(self, name):
        assert name == "libcuda.so.1"

    def cuInit(self, flags):
        return {error}

    def cuDeviceGetCount(self, count):
        count.value = {count}
        return 0
"""


@pytest.fixture
def amiss(tmp_path):
    """What is amiss with a host with these GPUs, by their MIG modes, of which CUDA says this."""

    def ask(modes, *, error=0, count=0, slices=0):
        for name in ("libcuda.so", "libnvidia-ml.so"):
            (tmp_path / f"{name}.{VERSION}").touch()
            (tmp_path / f"{name}.1").symlink_to(f"{name}.{VERSION}")
        (tmp_path / "nvidia").mkdir()
        (tmp_path / "nvidia" / "version").write_text(VERSION)
        (tmp_path / "ctypes.py").write_text(_CTYPES.format(error=error, count=count))
        (tmp_path / "modes").write_text("".join(f"{mode}\n" for mode in modes))
        (tmp_path / "list").write_text("GPU 0: a GPU (UUID: GPU-1)\n" + "  MIG 1g.10gb (UUID: MIG-1)\n" * slices)
        programs = {
            "ldconfig": f'for name in cuda nvidia-ml; do echo "lib$name.so.1 => {tmp_path}/lib$name.so.1"; done',
            "nvidia-smi": f'[ "$1" = -L ] && cat {tmp_path}/list || cat {tmp_path}/modes',
        }
        for name, text in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        script = SCRIPT.read_text().replace("/sys/module", str(tmp_path))
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            ["sh", "-c", script, "verify.sh", VERSION, str(len(modes)), "", ""],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.splitlines()

    return ask


WHOLE, CUT, NEITHER = "Disabled", "Enabled", "[N/A]"


@pytest.mark.parametrize("mode", [WHOLE, NEITHER])
def test_all_gpus_that_are_whole_are_seen(amiss, mode):
    assert amiss([mode] * 8, count=8) == []


def test_a_gpu_that_cuda_does_not_see_is_missed(amiss):
    assert amiss([WHOLE] * 8, count=7) == [
        "nvidia_driver_gpus: CUDA sees 7 GPUs, and should see 8; see nvidia-smi and journalctl -k"
    ]


@pytest.mark.parametrize("error", [100, 802, 803])
def test_a_cuda_that_does_not_start_is_said_with_its_error(amiss, error):
    assert amiss([WHOLE] * 8, error=error) == [
        f"nvidia_driver_version: CUDA does not start: error {error}; see journalctl -k"
    ]


@pytest.mark.parametrize("modes", [[CUT] * 8, [CUT, *[WHOLE] * 7]])
def test_of_gpus_that_are_cut_one_slice_is_seen(amiss, modes):
    assert amiss(modes, count=1, slices=7) == []


@pytest.mark.parametrize("said", [{"error": 100}, {"count": 0}])
def test_gpus_that_are_all_in_mig_mode_and_lost_their_slices_are_left_to_the_role_that_makes_them(amiss, said):
    assert amiss([CUT] * 8, **said) == []


@pytest.mark.parametrize("said", [{"error": 802}, {"error": 100, "slices": 7}, {"count": 0, "slices": 7}])
def test_mig_mode_excuses_nothing_else(amiss, said):
    assert len(amiss([CUT] * 8, **said)) == 1


def test_a_gpu_that_is_whole_beside_others_that_lost_their_slices_is_seen(amiss):
    assert len(amiss([CUT, WHOLE], error=100)) == 1
