from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from quench import Certificate, ca
from roles.nginx import NginxSettings, files

NAME = "llm.example.org"
PEM = (Encoding.PEM, PrivateFormat.PKCS8)


@pytest.fixture
def pair(tmp_path):
    """Settings for a certificate with these names and this validity, in days from now."""

    def make(names=(NAME,), start=-1, end=90, password=None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(subject, subject, key.public_key(), 1)
            .not_valid_before(now + timedelta(days=start))
            .not_valid_after(now + timedelta(days=end))
        )
        if names:
            alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        encryption = BestAvailableEncryption(password) if password else NoEncryption()
        (tmp_path / "a.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        (tmp_path / "a.key").write_bytes(key.private_bytes(*PEM, encryption))
        return {"nginx_certificate": f"{tmp_path}/a.crt", "nginx_private_key": f"file:{tmp_path}/a.key"}

    return make


def only(found):
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_a_good_pair_has_no_problem(nginx_problems, pair):
    assert nginx_problems(**pair()) == []


def test_an_expired_certificate_is_named_with_the_day(nginx_problems, pair):
    problem = only(nginx_problems(**pair(start=-90, end=-2)))
    assert problem.key == "nginx_certificate"
    assert f"expired on {(datetime.now(UTC) - timedelta(days=2)).date()}" in problem.what


def test_a_certificate_of_the_future_is_named_with_the_day(nginx_problems, pair):
    problem = only(nginx_problems(**pair(start=5)))
    assert f"not valid before {(datetime.now(UTC) + timedelta(days=5)).date()}" in problem.what


@pytest.mark.parametrize(
    ("names", "good"),
    [
        ([NAME], True),
        (["other.example.org", NAME], True),
        (["*.example.org"], True),
        (["other.example.org"], False),
        (["*.org"], False),
        (["example.org"], False),
        # Clients no longer look at the common name, which is right here.
        ([], False),
    ],
)
def test_the_certificate_must_carry_the_servers_name(nginx_problems, pair, names, good):
    found = nginx_problems(**pair(names=names))
    assert [NAME in problem.what for problem in found] == ([] if good else [True])


def test_an_address_is_a_name_too(nginx_problems, tmp_path):
    ca.create(tmp_path, "Test CA")
    certificate, key = ca.issue(tmp_path, ["10.0.0.7"])
    files = {"nginx_certificate": str(certificate), "nginx_private_key": f"file:{key}"}
    assert nginx_problems(**files, nginx_server_name="10.0.0.7") == []
    assert "10.0.0.8" in only(nginx_problems(**files, nginx_server_name="10.0.0.8")).what


def test_the_key_of_another_certificate_is_refused(nginx_problems, pair, pki):
    files = pair() | {"nginx_private_key": f"file:{pki / NAME}.key"}
    problem = only(nginx_problems(**files))
    assert (problem.key, problem.what) == ("nginx_private_key", "does not belong to the certificate")


def test_a_key_with_a_password_is_refused_since_nginx_would_ask_for_it(nginx_problems, pair):
    problem = only(nginx_problems(**pair(password=b"canary-5f1d")))
    assert problem.key == "nginx_private_key"
    assert "without a password" in problem.what


def test_what_is_no_key_is_refused_and_not_repeated(nginx_problems, pair, tmp_path):
    files = pair()
    (tmp_path / "a.key").write_text("canary-5f1d")
    assert "canary" not in str(only(nginx_problems(**files)))


@pytest.mark.parametrize("path", ["absent.crt", "."])
def test_a_certificate_that_cannot_be_read_is_named_with_its_path(nginx_problems, tmp_path, path):
    problem = only(nginx_problems(nginx_certificate=str(tmp_path / path)))
    assert problem.key == "nginx_certificate"
    assert str(tmp_path) in problem.what


def test_a_certificate_in_the_home_folder_of_nobody_is_a_problem_and_no_traceback(nginx_problems):
    assert only(nginx_problems(nginx_certificate="~no-such-user-here/a.crt")).key == "nginx_certificate"


@pytest.mark.parametrize("content", [b"", b"text", b"\x30\x82\x01\xff"])
def test_a_certificate_that_is_not_pem_is_refused_with_the_way_to_convert_it(nginx_problems, tmp_path, content):
    (tmp_path / "a.crt").write_bytes(content)
    problem = only(nginx_problems(nginx_certificate=f"{tmp_path}/a.crt"))
    assert "no PEM certificate" in problem.what
    assert "openssl x509" in problem.remedy


def test_a_certificate_given_as_text_is_one_problem_of_one_line(nginx_problems, pki):
    problem = only(nginx_problems(nginx_certificate=(pki / f"{NAME}.crt").read_text()))
    assert len(str(problem).splitlines()) == 1


def test_a_private_key_in_the_place_of_the_certificate_is_refused(nginx_problems, pki):
    problem = only(nginx_problems(nginx_certificate=(pki / f"{NAME}.key").read_text()))
    assert "holds a certificate or a key" in problem.what
    assert "-----" not in str(problem)


def test_a_private_key_in_the_certificates_file_is_refused_since_that_file_is_open_to_all(nginx_problems, pair):
    files = pair()
    both = files["nginx_certificate"]
    key = files["nginx_private_key"].removeprefix("file:")
    with open(both, "a") as certificate, open(key) as private:
        certificate.write(private.read())
    assert any("private key" in problem.what for problem in nginx_problems(**files))


def test_one_key_for_two_clients_is_refused_with_both_names(nginx_problems, make_client):
    problem = only(nginx_problems(nginx_clients={"team-a": make_client("k"), "team-b": make_client("k")}))
    assert "team-a and team-b have the same key" in problem.what


def test_a_client_may_have_two_keys_while_it_changes_over_and_no_third(nginx_problems, make_client):
    keys = [make_client(key)["keys"][0] for key in "abc"]
    assert nginx_problems(nginx_clients={"a": {"keys": keys[:2]}}) == []
    assert only(nginx_problems(nginx_clients={"a": {"keys": keys}})).key == "nginx_clients.a.keys"


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a\nb", "a,b", "ä"])
def test_a_clients_name_that_would_break_a_log_line_is_refused(nginx_problems, make_client, name):
    assert "cannot name a client" in only(nginx_problems(nginx_clients={name: make_client("k")})).what


@pytest.mark.parametrize("name", ["llm.example.org;", "a b", "LLM", "_", "a{", ""])
def test_a_server_name_that_would_end_its_directive_is_refused(nginx_problems, name):
    assert only(nginx_problems(nginx_server_name=name)).key == "nginx_server_name"


def test_a_certificate_with_its_chain_is_taken_whole(nginx_data, engines, pki, tmp_path):
    chain = (pki / f"{NAME}.crt").read_text() + (pki / "ca.crt").read_text()
    (tmp_path / "chain.crt").write_text(chain)
    settings = NginxSettings.load("node1", nginx_data | {"nginx_certificate": f"{tmp_path}/chain.crt"})
    assert list(settings.problems("node1")) == []
    assert {file.dest: file.content for file in files(settings, engines, Certificate()) if hasattr(file, "content")}[
        "/etc/nginx/quench/tls.crt"
    ] == chain
