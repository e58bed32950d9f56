"""What vLLM asks of the host's driver, as a plan of both roles finds it."""

from __future__ import annotations

import pprint
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quench.plan import load_inventory, make_plan
from quench.problems import Problem

DEPLOY = """
from quench import Slices
from roles.nvidia_driver import nvidia_driver
from roles.vllm import vllm
vllm(nvidia_driver(), Slices())
"""
# Debian's own driver, of branch 550: it runs CUDA 12.
HOST: dict[str, Any] = {
    "platform": "debian-13",
    "nvidia_driver_gpus": {"l4": 1},
    "nvidia_driver_version": "550.163.01",
    "nvidia_driver_repository": "https://mirror.example.org/debian",
    "vllm_models": {"llama": {"port": 8000, "revision": "1", "gpus": [0]}},
    "vllm_version": "1.0",
}
# As pip's lock files name what a vLLM is built with.
LOCKS = {"12": "nvidia-cuda-runtime-cu12==12.8.90 ", "13": "nvidia-cuda-runtime==13.0.96 "}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[str], list[Problem]]:
    """Problems of that host with a vLLM that is built for this CUDA."""

    def plan(cuda: str) -> list[Problem]:
        (tmp_path / "1.0-py313.txt").write_text(f"vllm==1.0 \\\n{LOCKS[cuda]}\\\n")
        (tmp_path / "deploy.py").write_text(DEPLOY)
        data = HOST | {"vllm_requirements": str(tmp_path)}
        (tmp_path / "inventory.py").write_text(f"hosts = [('node1', {pprint.pformat(data)})]\n")
        inventory = load_inventory(str(tmp_path / "inventory.py"))
        return make_plan(inventory, [str(tmp_path / "deploy.py")])["node1"].problems

    return plan


def test_a_vllm_for_a_cuda_that_the_driver_does_not_run_is_refused_with_the_oldest_branch_that_does(
    planned: Callable[[str], list[Problem]],
) -> None:
    (problem,) = planned("13")
    assert problem.key == "nvidia_driver_version"
    assert problem.what == "vLLM 1.0 is built for CUDA 13, and driver 550.163.01 runs no more than 12.4"
    assert problem.remedy == "choose a driver of branch 580 or newer, or another vllm_version"


def test_a_vllm_for_a_cuda_that_the_driver_runs_passes(planned: Callable[[str], list[Problem]]) -> None:
    assert planned("12") == []
