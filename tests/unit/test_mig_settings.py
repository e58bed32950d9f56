import pprint

import pytest
import yaml

from quench import Gpus
from quench.plan import load_inventory, make_plan
from roles.mig import MigSettings, files

DEPLOY = """
from quench import Slices
from roles.mig import mig
from roles.nvidia_driver import nvidia_driver
from roles.vllm import vllm
gpus = nvidia_driver()
vllm(gpus, mig(gpus))
"""
SLICE = "MIG-a9bd6b2c-3e5e-5d5f-8c6b-9d6f2f5d6e01"


@pytest.fixture
def found(problems):
    return lambda *layouts: problems(MigSettings, {"platform": "debian-12", "mig_layout": list(layouts)})


def only(found):
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def sliced(*layouts, count=8):
    return MigSettings.load("node1", {"platform": "debian-12", "mig_layout": list(layouts)}).sliced(count)


@pytest.mark.parametrize(
    "slices",
    [{"1g.10gb": 7}, {"3g.40gb": 2}, {"4g.40gb": 1, "3g.40gb": 1}, {"1g.10gb+me": 1}, {"1g.12gb+me.all": 1}, {}],
)
def test_slices_that_fit_on_a_gpu_pass(found, slices):
    assert found({"gpus": [0], "slices": slices}) == []


@pytest.mark.parametrize("slices", [{"1g.10gb": 8}, {"4g.40gb": 2}, {"4g.40gb": 1, "2g.20gb": 2}])
def test_more_slices_than_a_gpu_has_are_refused_with_their_number(found, slices):
    problem = only(found({"gpus": [0], "slices": slices}))
    assert problem.key == "mig_layout.0.slices"
    assert "take 8 slices" in problem.what


@pytest.mark.parametrize("profile", ["", "1g", "10gb", "1g.10", "1g 10gb", "1g.10gb\n", "xg.10gb", "all-1g.10gb"])
def test_what_is_no_profile_is_refused_with_where_to_find_them(found, profile):
    problem = only(found({"gpus": [0], "slices": {profile: 1}}))
    assert "is no profile" in problem.what
    assert "nvidia-smi mig -lgip" in problem.remedy


@pytest.mark.parametrize("gpus", [[-1], "0", "every", [0.5]])
def test_what_names_no_gpu_is_refused(found, gpus):
    assert {problem.key.split(".")[0] for problem in found({"gpus": gpus, "slices": {"1g.10gb": 7}})} == {"mig_layout"}


@pytest.mark.parametrize("layouts", [([0, 1], [1]), ([0, 0],), ("all", [3]), ("all", "all")])
def test_a_gpu_with_two_layouts_is_refused(found, layouts):
    problem = only(found(*[{"gpus": gpus, "slices": {"1g.10gb": 7}} for gpus in layouts]))
    assert (problem.key, problem.what) == ("mig_layout", "has a GPU twice")


def test_gpus_that_are_cut_are_known_by_their_index():
    cut, whole = {"1g.10gb": 7}, {}
    assert sliced({"gpus": [6, 2], "slices": cut}, {"gpus": [0], "slices": whole}) == (2, 6)
    assert sliced({"gpus": "all", "slices": cut}, count=3) == (0, 1, 2)
    assert sliced({"gpus": "all", "slices": whole}) == ()


def test_the_layout_stands_in_the_form_of_mig_parted():
    layouts = [{"gpus": [7], "slices": {"1g.10gb": 7}}, {"gpus": [0, 1], "slices": {}}]
    managed = files(MigSettings.load("node1", {"platform": "debian-12", "mig_layout": layouts}), Gpus(count=8))
    config = next(file for file in managed if file.dest.endswith(".yaml"))
    drop_in = next(file for file in managed if file.dest.endswith(".conf"))
    parsed = yaml.safe_load(config.content)
    ((name, rows),) = parsed["mig-configs"].items()
    assert parsed["version"] == "v1"
    assert rows == [
        {"devices": [7], "mig-enabled": True, "mig-devices": {"1g.10gb": 7}},
        {"devices": [0, 1], "mig-enabled": False, "mig-devices": {}},
        # A former layout may have cut these.
        {"devices": [2, 3, 4, 5, 6], "mig-enabled": False, "mig-devices": {}},
    ]
    assert f'"MIG_PARTED_CONFIG_FILE={config.dest}"' in drop_in.content
    assert f'"MIG_PARTED_SELECTED_CONFIG={name}"' in drop_in.content


@pytest.mark.parametrize("gpus", ["all", [0, 1, 2]])
def test_where_every_gpu_is_named_none_is_left(gpus):
    data = {"platform": "debian-12", "mig_layout": [{"gpus": gpus, "slices": {"1g.10gb": 7}}]}
    config, _ = files(MigSettings.load("node1", data), Gpus(count=3))
    (rows,) = yaml.safe_load(config.content)["mig-configs"].values()
    assert rows == [{"devices": gpus, "mig-enabled": True, "mig-devices": {"1g.10gb": 7}}]


@pytest.fixture
def planned(tmp_path, gpu_data, vllm_data):
    """Problems of a host with eight GPUs, cut so, and with these GPUs for its model."""

    def plan(layouts, **model):
        models = {"llama": {"port": 8000, "revision": "1", **model}}
        data = gpu_data | vllm_data | {"vllm_version": "0.32.0", "vllm_models": models, "mig_layout": layouts}
        (tmp_path / "deploy.py").write_text(DEPLOY)
        (tmp_path / "inventory.py").write_text(f"hosts = [('node1', {pprint.pformat(data)})]\n")
        inventory = load_inventory(str(tmp_path / "inventory.py"))
        return make_plan(inventory, [str(tmp_path / "deploy.py")])["node1"].problems

    return plan


def test_a_gpu_that_the_host_does_not_have_cannot_be_cut(planned):
    problem = only(planned([{"gpus": [8], "slices": {"1g.10gb": 7}}], gpus=[0]))
    assert problem.key == "mig_layout"
    assert "indices are 0 to 7" in problem.remedy


def test_a_model_on_a_gpu_that_is_cut_is_refused_and_told_of_slices(planned):
    problem = only(planned([{"gpus": [1], "slices": {"1g.10gb": 7}}], gpus=[0, 1]))
    assert problem.key == "vllm_models.llama.gpus"
    assert "mig_slice" in problem.remedy


def test_a_model_on_a_gpu_that_the_host_does_not_have_is_refused(planned):
    problem = only(planned([], gpus=[7, 8]))
    assert problem.key == "vllm_models.llama.gpus"
    assert "names GPU 8" in problem.what


@pytest.mark.parametrize("model", [{"gpus": [0]}, {"mig_slice": SLICE}])
def test_models_on_whole_gpus_and_on_slices_pass_beside_each_other(planned, model):
    assert planned([{"gpus": [7], "slices": {"1g.10gb": 7}}], **model) == []
