import pytest

from quench import Refused
from quench.settings import unclaimed
from roles.base import BaseSettings
from roles.nginx import NginxSettings
from roles.vllm import VllmSettings
from roles.vllm import files as vllm_files

CANARY = "canary-5f1d"
MODEL = {"port": 8000, "revision": "1", "gpus": [0]}
SLICE = "MIG-a9bd6b2c-3e5e-5d5f-8c6b-9d6f2f5d6e01"


def only(found):
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_good_settings_have_no_problem(nginx_problems, vllm_data):
    assert nginx_problems() == []
    assert VllmSettings.load("node1", vllm_data).models["llama"].gpus == [0]


def test_a_key_that_the_role_does_not_know_is_named_with_the_nearest_valid_key(nginx_problems):
    problem = only(nginx_problems(nginx_prot=8443))
    assert (problem.host, problem.key, problem.what) == ("node1", "nginx_prot", "unknown key")
    assert problem.remedy == "did you mean nginx_port?"


def test_a_nested_unknown_key_is_named_with_the_nearest_key_of_its_own_model(vllm_problems):
    problem = only(vllm_problems(vllm_models={"llama": MODEL | {"revison": "2"}}))
    assert problem.key == "vllm_models.llama.revison"
    assert problem.remedy == "did you mean revision?"


def test_an_unknown_key_in_a_list_of_models_is_found(nginx_problems, make_client):
    clients = {"a": make_client("k")}
    clients["a"]["keys"][0]["expire"] = "2099-01-01"
    problem = only(nginx_problems(nginx_clients=clients))
    assert problem.key == "nginx_clients.a.keys.0.expire"
    assert problem.remedy == "did you mean expires?"


def test_an_unknown_key_that_resembles_nothing_gets_the_list_of_valid_keys(nginx_problems):
    problem = only(nginx_problems(nginx_zzz=1))
    assert "nginx_body_mebibytes" in problem.remedy
    assert "nginx_platform" not in problem.remedy


@pytest.mark.parametrize("value", ["443", 443.0, True, None, [443]])
def test_a_value_of_the_wrong_type_is_shown_and_not_converted(nginx_problems, value):
    problem = only(nginx_problems(nginx_port=value))
    assert problem.key == "nginx_port"
    assert problem.what.startswith(f"{value!r}: ")


def test_a_value_of_the_wrong_type_comes_with_an_example(problems):
    data = {"platform": "debian-12", "base_admin_keys": [], "base_ntp_servers": "ntp1.example.org"}
    found = {problem.key: problem.remedy for problem in problems(BaseSettings, data)}
    assert "ntp2.example.org" in found["base_ntp_servers"]


def test_a_long_value_is_cut_so_that_the_problem_stays_one_line(nginx_problems):
    problem = only(nginx_problems(nginx_port="line\n" * 100))
    assert len(str(problem).splitlines()) == 1
    assert len(str(problem)) < 250


def test_a_required_key_that_is_absent_is_named(nginx_data, problems):
    del nginx_data["nginx_server_name"]
    problem = only(problems(NginxSettings, nginx_data))
    assert (problem.key, problem.what) == ("nginx_server_name", "is not set")


def test_the_platform_is_named_without_a_role_in_front(nginx_data, nginx_problems, problems):
    assert only(nginx_problems(platform="debian-11")).key == "platform"
    del nginx_data["platform"]
    assert only(problems(NginxSettings, nginx_data)).key == "platform"


def test_a_role_cannot_be_given_a_platform_of_its_own(nginx_problems):
    assert only(nginx_problems(nginx_platform="debian-13")).key == "nginx_platform"


def test_all_errors_of_a_role_come_together(vllm_data, problems):
    del vllm_data["vllm_version"]
    vllm_data |= {"vllm_device": "tpu", "vllm_drain_seconds": -1, "vllm_pyhton": "x"}
    vllm_data["vllm_models"]["llama"]["port"] = 80
    assert [problem.key for problem in problems(VllmSettings, vllm_data)] == [
        "vllm_device",
        "vllm_drain_seconds",
        "vllm_models.llama.port",
        "vllm_pyhton",
        "vllm_version",
    ]


def test_settings_cannot_be_changed_once_they_are_loaded(vllm_data):
    settings = VllmSettings.load("node1", vllm_data)
    with pytest.raises(ValueError, match="frozen"):
        settings.version = "1"


def test_two_models_on_one_port_are_refused_with_both_names(vllm_problems):
    problem = only(vllm_problems(vllm_models={"a": MODEL, "b": MODEL | {"gpus": [1]}}))
    assert problem.what == "models a and b are both on port 8000"


def test_two_models_on_one_gpu_are_refused_with_both_names(vllm_problems):
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"gpus": [0, 1]}, "b": MODEL | {"port": 8001, "gpus": [1]}}))
    assert problem.what == "models a and b are both on GPU 1"


def test_a_gpu_below_zero_is_refused(vllm_problems):
    # CUDA takes -1 for "no GPU at all".
    assert only(vllm_problems(vllm_models={"a": MODEL | {"gpus": [-1]}})).key == "vllm_models.a.gpus.0"


def test_cuda_without_a_gpu_is_refused_and_cpu_is_not(vllm_data, vllm_problems):
    models = {"a": MODEL | {"gpus": []}}
    assert "a has no GPU" in only(vllm_problems(vllm_models=models)).what
    assert VllmSettings.load("node1", vllm_data | {"vllm_models": models, "vllm_device": "cpu"})


@pytest.mark.parametrize("half", [{"source": "https://mirror.example.org/a"}, {"sha256": "0" * 64}])
def test_a_source_without_its_checksum_is_refused_and_so_is_the_reverse(vllm_problems, half):
    problem = only(vllm_problems(vllm_models={"a": MODEL | half}))
    assert problem.key == "vllm_models.a"
    assert "source and sha256 go together" in problem.what


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "a@b", "../a", "a\nb", "modèle"])
def test_a_name_that_cannot_name_a_unit_is_refused(vllm_problems, name):
    assert "cannot name a unit" in only(vllm_problems(vllm_models={name: MODEL})).what


@pytest.mark.parametrize("name", ["host", "port", "served-model-name", "served_model_name", "shutdown-timeout", "uds"])
def test_an_engine_argument_that_the_role_sets_itself_is_refused(vllm_problems, name):
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"engine_args": {name: "x"}}}))
    assert problem.key == "vllm_models.a.engine_args"
    assert problem.what == f"{name} is set by the role itself"


@pytest.mark.parametrize(
    "name",
    [
        "trust-remote-code",
        "trust_remote_code",
        "no-trust-remote-code",
        "allowed-local-media-path",
        "enable-log-requests",
        "enable-log-outputs",
        "middleware",
        "tool-server",
        # argparse takes the beginning of a name for the whole of it,
        "trust-remote",
        # and what follows an equals sign for its value.
        "host=0.0.0.0",
    ],
)
def test_an_engine_argument_that_opens_the_host_is_refused(vllm_problems, name):
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"engine_args": {name: True}}}))
    assert problem.key.startswith("vllm_models.a.engine_args")


@pytest.mark.parametrize("name", ["api-key", "hf-token", "hf_token"])
def test_a_secret_among_engine_arguments_is_refused_since_their_file_is_open_to_all(vllm_problems, name):
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"engine_args": {name: CANARY}}}))
    assert problem.key.startswith("vllm_models.a.engine_args")
    assert CANARY not in str(problem)


@pytest.mark.parametrize(
    "args", [{"gpu-memory-utilization": 0.9}, {"enforce-eager": True}, {"max-num-batched-tokens": 64}]
)
def test_other_engine_arguments_pass(vllm_data, args):
    vllm_data["vllm_models"]["llama"]["engine_args"] = args
    assert VllmSettings.load("node1", vllm_data).models["llama"].engine_args == args


def test_a_version_without_a_lock_file_is_refused_with_those_that_have_one(vllm_problems, tmp_path):
    (tmp_path / "1.0-py311.txt").touch()
    problem = only(vllm_problems(vllm_requirements=str(tmp_path), vllm_version="2.0"))
    assert "2.0-py311.txt" in problem.what
    assert problem.remedy.endswith("choose from: 1.0")


@pytest.mark.parametrize("text", ["", "vllm==2.0.1 --hash=sha256:00\n", "torch==2.0 --hash=sha256:00\n"])
def test_a_lock_file_that_does_not_name_its_version_is_refused(vllm_problems, tmp_path, text):
    (tmp_path / "2.0-py311.txt").write_text(text)
    problem = only(vllm_problems(vllm_requirements=str(tmp_path), vllm_version="2.0"))
    assert problem.what.endswith("2.0-py311.txt does not name vllm==2.0")


def test_another_lock_file_for_the_same_vllm_has_a_label(vllm_problems, tmp_path):
    (tmp_path / "2.0+2-py311.txt").write_text("vllm==2.0 --hash=sha256:00\n")
    (tmp_path / "2.0+3-py311.txt").write_text("vllm==2.0+2 --hash=sha256:00\n")
    assert vllm_problems(vllm_requirements=str(tmp_path), vllm_version="2.0+2") == []
    assert "2.0+3-py311.txt" in only(vllm_problems(vllm_requirements=str(tmp_path), vllm_version="2.0+3")).what


def test_root_is_no_administrator(problems):
    data = {"platform": "debian-12", "base_admin_keys": ["ssh-ed25519 AAAA a"], "base_admin_user": "root"}
    assert only(problems(BaseSettings, data)).key == "base_admin_user"


@pytest.mark.parametrize(
    "changes",
    [
        {"nginx_private_key": CANARY},
        {"nginx_private_key": [CANARY]},
        {"nginx_private_key": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"},
        {"nginx_certificate": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"},
        {"nginx_clients": {"a": {"keys": [{"sha256": CANARY, "expires": "2099-01-01"}]}}},
        {"nginx_clients": {"a": {"keys": [CANARY]}}},
        {"nginx_clients": {"a": {"keys": CANARY}}},
        {"nginx_clients": {"a": CANARY}},
        {"nginx_clients": {"a": {"keys": [{"key": CANARY, "sha256": "0" * 64, "expires": "2099-01-01"}]}}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_secret_given_in_plain_to_nginx_is_refused_and_not_repeated(nginx_problems, changes):
    found = nginx_problems(**changes)
    assert found
    assert CANARY not in "".join(map(str, found))


@pytest.mark.parametrize("value", [CANARY, [CANARY], {"token": CANARY}])
def test_a_token_given_in_plain_to_vllm_is_refused_and_not_repeated(vllm_problems, value):
    problem = only(vllm_problems(vllm_hf_token=value))
    assert problem.key == "vllm_hf_token"
    assert CANARY not in str(problem)


def test_every_reference_to_a_secret_is_found_with_its_key(nginx_data, vllm_data):
    vllm_data["vllm_hf_token"] = "env:HF_TOKEN"
    assert [key for key, _ in NginxSettings.load("node1", nginx_data).secrets()] == ["nginx_private_key"]
    assert [(k, s.reference) for k, s in VllmSettings.load("node1", vllm_data).secrets()] == [
        ("vllm_hf_token", "env:HF_TOKEN")
    ]


def test_a_private_key_among_the_administrators_keys_is_refused_and_not_repeated(problems):
    data = {"platform": "debian-12", "base_admin_keys": [f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}"]}
    assert CANARY not in str(only(problems(BaseSettings, data)))


def test_one_mirror_without_the_other_is_refused(problems):
    data = {
        "platform": "debian-12",
        "base_admin_keys": ["ssh-ed25519 AAAA"],
        "base_apt_mirror": "https://mirror.example.org/debian",
    }
    assert "only one of" in only(problems(BaseSettings, data)).what


def test_a_key_that_no_role_reads_is_named_with_its_nearest_valid_key():
    problem = only(list(unclaimed("node1", {"ngnix_port": 1})))
    assert (problem.key, problem.remedy) == ("ngnix_port", "did you mean nginx_port?")


def test_a_misspelt_platform_is_told_of_the_platform():
    assert only(list(unclaimed("node1", {"platfrom": "debian-12"}))).remedy == "did you mean platform?"


@pytest.mark.parametrize(("key", "meant"), [("ssh_hostnme", "ssh_hostname"), ("_sduo", "_sudo")])
def test_a_key_of_pyinfra_that_is_misspelt_is_named_with_the_right_one(key, meant):
    assert only(list(unclaimed("node1", {key: "x"}))).remedy == f"did you mean {meant}?"


def test_keys_of_pyinfra_of_the_site_and_of_roles_are_nobodys_mistake():
    data = {"ssh_user": "a", "_sudo": True, "site_rack": 7, "platform": "debian-12", "nginx_x": 1}
    assert list(unclaimed("node1", data)) == []


def test_a_key_that_resembles_nothing_is_told_how_to_name_keys_of_ones_own():
    assert "site_*" in only(list(unclaimed("node1", {"qqqqqq": 1}))).remedy


def test_load_refuses_in_the_role_that_reads_the_key_and_in_no_other(vllm_data):
    VllmSettings.load("node1", vllm_data | {"nginx_nonsense": 1})
    with pytest.raises(Refused):
        VllmSettings.load("node1", vllm_data | {"vllm_nonsense": 1})


@pytest.mark.parametrize("platform", ["rhel-9", "rhel-10", "ubuntu-22.04"])
def test_a_role_that_does_not_run_on_a_platform_says_so_with_those_that_it_runs_on(vllm_problems, platform):
    problem = only(vllm_problems(platform=platform))
    assert problem.key == "platform"
    assert f"vllm does not run on '{platform}'" in problem.what
    assert "debian-12" in problem.remedy
    assert platform not in problem.remedy


def test_a_platform_that_a_role_does_not_run_on_hides_none_of_its_other_problems(nginx_problems):
    assert {problem.key for problem in nginx_problems(platform="rhel-9", nginx_port=0)} == {"platform", "nginx_port"}


def test_a_model_may_have_a_slice_instead_of_gpus(vllm_problems):
    assert vllm_problems(vllm_models={"a": MODEL | {"gpus": [], "mig_slice": SLICE}}) == []


def test_a_model_with_gpus_and_a_slice_is_refused(vllm_problems):
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"mig_slice": SLICE}}))
    assert problem.what == "model a has gpus and a mig_slice"


def test_two_models_on_one_slice_are_refused_with_both_names(vllm_problems):
    half = {"gpus": [], "mig_slice": SLICE}
    problem = only(vllm_problems(vllm_models={"a": MODEL | half, "b": MODEL | half | {"port": 8001}}))
    assert problem.what == f"models a and b are both on GPU {SLICE}"


@pytest.mark.parametrize(
    "name", ["", "0:1", "GPU-a9bd6b2c-3e5e-5d5f-8c6b-9d6f2f5d6e01", SLICE.lower(), f"{SLICE},{SLICE}", f"{SLICE}\n"]
)
def test_what_is_no_uuid_of_a_slice_is_refused(vllm_problems, name):
    # The last of them would end the line of the environment file.
    problem = only(vllm_problems(vllm_models={"a": MODEL | {"gpus": [], "mig_slice": name}}))
    assert problem.key.startswith("vllm_models")


def test_what_an_engine_argument_opens_again_is_said_in_the_rendered_file(vllm_data):
    vllm_data["vllm_models"]["llama"]["engine_args"] = {"disable_fastapi_docs": False, "enforce-eager": True}
    settings = VllmSettings.load("node1", vllm_data)
    text = next(file.content for file in vllm_files(settings) if file.dest == "/etc/vllm/llama.yaml")
    comments = [line for line in text.splitlines() if line.startswith("# Relaxed")]
    assert comments == ["# Relaxed by vllm_models.llama.engine_args: disable-fastapi-docs."]
