import pytest

from roles.dcgm_exporter import DcgmExporterSettings


@pytest.fixture
def found(problems, exporter_data):
    return lambda **changes: problems(DcgmExporterSettings, exporter_data | changes)


def only(found):
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_good_settings_have_no_problem(found):
    assert found() == []


def test_a_host_without_an_address_needs_nothing_else(problems):
    assert problems(DcgmExporterSettings, {"platform": "debian-12"}) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::1", "127.8.8.8"])  # noqa: S104
def test_an_address_that_is_none_of_the_monitoring_network_is_refused(found, address):
    problem = only(found(dcgm_exporter_address=address))
    assert problem.key == "dcgm_exporter_address"
    assert "the host's own address" in problem.remedy


@pytest.mark.parametrize("address", ["", "node1", "10.0.30.14:9400", "10.0.30.0/24"])
def test_what_is_no_address_is_refused(found, address):
    assert only(found(dcgm_exporter_address=address)).key == "dcgm_exporter_address"


def test_an_exporter_that_nobody_may_ask_is_refused(found):
    problem = only(found(dcgm_exporter_clients=[]))
    assert (problem.key, problem.what) == ("dcgm_exporter_clients", "is empty")


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_the_whole_world_is_no_monitoring_zone(found, network):
    problem = only(found(dcgm_exporter_clients=["10.0.30.0/24", network]))
    assert "whole world" in problem.what


@pytest.mark.parametrize("network", ["10.0.30.1/24", "prometheus", "10.0.30.0/33", ""])
def test_what_is_no_network_is_refused(found, network):
    assert only(found(dcgm_exporter_clients=[network])).key == "dcgm_exporter_clients"


def test_a_certificate_for_another_address_is_refused_with_this_one(found):
    problem = only(found(dcgm_exporter_address="10.0.30.15"))
    assert problem.key == "dcgm_exporter_certificate"
    assert "10.0.30.15" in problem.what
    assert "dcgm_exporter_address" in problem.remedy


def test_the_key_of_another_certificate_is_refused(found, pki):
    problem = only(found(dcgm_exporter_private_key=f"file:{pki}/llm.example.org.key"))
    assert (problem.key, problem.what) == ("dcgm_exporter_private_key", "does not belong to the certificate")


def test_without_a_private_key_there_is_no_tls(exporter_data, problems):
    del exporter_data["dcgm_exporter_private_key"]
    problem = only(problems(DcgmExporterSettings, exporter_data))
    assert (problem.key, problem.what) == ("dcgm_exporter_private_key", "is not set")


@pytest.mark.parametrize("path", ["", "absent.crt", ".", "~no-such-user-here/ca.crt"])
def test_a_ca_that_cannot_be_read_is_a_problem_and_no_traceback(found, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert only(found(dcgm_exporter_client_ca=path)).key == "dcgm_exporter_client_ca"


@pytest.mark.parametrize("content", ["", "text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_that_is_no_certificate_is_refused(found, tmp_path, content):
    (tmp_path / "ca.crt").write_text(content)
    problem = only(found(dcgm_exporter_client_ca=f"{tmp_path}/ca.crt"))
    assert "no PEM certificate" in problem.what


def test_a_private_key_given_in_plain_is_refused_and_not_repeated(found):
    problem = only(found(dcgm_exporter_private_key="canary-5f1d"))
    assert problem.key == "dcgm_exporter_private_key"
    assert "canary" not in str(problem)


def test_the_keys_of_the_exporter_are_not_taken_for_those_of_dcgm(exporter_data, problems):
    from roles.dcgm import DcgmSettings

    assert problems(DcgmSettings, exporter_data) == []
    assert only(problems(DcgmSettings, exporter_data | {"dcgm_prot": 5556})).remedy == "did you mean dcgm_port?"
