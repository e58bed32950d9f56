import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from quench import ca
from quench.cli import main


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def verify(folder, certificate, name, at=None):
    """What a TLS client does: chain, names, validity, purpose."""
    subject = x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    builder = PolicyBuilder().store(Store([load(folder / "ca.crt")])).time(at or datetime.now(UTC))
    return builder.build_server_verifier(subject).verify(load(certificate), [])


@pytest.fixture
def folder(tmp_path):
    ca.create(tmp_path / "ca", "Test CA")
    return tmp_path / "ca"


def test_a_client_that_trusts_the_ca_accepts_what_it_issues(folder):
    certificate, _ = ca.issue(folder, ["llm.example.org", "10.0.0.7", "fd00::7"])
    assert len(verify(folder, certificate, "llm.example.org")) == 2
    assert verify(folder, certificate, "10.0.0.7")


def test_a_certificate_holds_for_its_names_alone(folder):
    certificate, _ = ca.issue(folder, ["llm.example.org"])
    with pytest.raises(VerificationError):
        verify(folder, certificate, "other.example.org")


def test_another_ca_of_the_same_name_is_not_trusted(folder, tmp_path):
    ca.create(tmp_path / "other", "Test CA")
    certificate, _ = ca.issue(tmp_path / "other", ["llm.example.org"])
    with pytest.raises(VerificationError):
        verify(folder, certificate, "llm.example.org")


def test_a_server_certificate_cannot_issue_others(folder):
    certificate, _ = ca.issue(folder, ["llm.example.org"])
    extensions = load(certificate).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_certificate_ends_after_its_days_and_is_good_on_a_clock_that_is_slow(folder):
    certificate, _ = ca.issue(folder, ["llm.example.org"], days=10)
    now = datetime.now(UTC)
    assert verify(folder, certificate, "llm.example.org", now - timedelta(minutes=30))
    with pytest.raises(VerificationError):
        verify(folder, certificate, "llm.example.org", now + timedelta(days=10))


def test_the_key_belongs_to_the_certificate(folder):
    certificate, key = ca.issue(folder, ["llm.example.org"])
    private = load_pem_private_key(key.read_bytes(), password=None)
    assert private.public_key() == load(certificate).public_key()


def test_keys_are_readable_by_their_owner_alone(folder):
    _, key = ca.issue(folder, ["llm.example.org"])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "ca.key", key)] == [0o600, 0o600]


def test_a_key_file_that_stood_open_is_closed_when_a_new_key_is_put_there(folder):
    (folder / "llm.example.org.key").touch(mode=0o644)
    _, key = ca.issue(folder, ["llm.example.org"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_name_longer_than_a_common_name_may_be_is_issued(folder):
    name = f"{'a' * 40}.{'b' * 40}.example.org"
    certificate, _ = ca.issue(folder, [name])
    assert verify(folder, certificate, name)


@pytest.mark.parametrize("name", ["ca", "CA", "./ca", "../ca/ca", "x/y"])
def test_a_name_whose_files_would_be_those_of_the_ca_is_refused(folder, name):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = CliRunner().invoke(main, ["ca", "issue", str(folder), name])
    assert (done.exit_code, done.stderr) == (
        1, f"Error: {name!r} cannot be the first name: its files would not be its own\n",
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # As a further name it is one like any other.
    assert CliRunner().invoke(main, ["ca", "issue", str(folder), "llm.example.org", "ca"]).exit_code == 0


def test_a_folder_without_a_ca_is_said_in_one_line(tmp_path):
    done = CliRunner().invoke(main, ["ca", "issue", str(tmp_path), "llm.example.org"])
    assert done.exit_code == 1
    assert done.stderr == (
        f"Error: {tmp_path}/ca.crt: no such file; bring it there, or make a CA: quench ca create {tmp_path}\n"
    )
    (tmp_path / "ca.crt").write_text("nothing of the kind")
    done = CliRunner().invoke(main, ["ca", "issue", str(tmp_path), "llm.example.org"])
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_a_place_where_nothing_can_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["ca", "create", str(tmp_path / "file" / "ca")])
    assert (done.exit_code, done.stderr) == (1, f"Error: {tmp_path}/file/ca: Not a directory\n")


def test_a_certificate_for_ever_is_refused(folder):
    done = CliRunner().invoke(main, ["ca", "issue", str(folder), "llm.example.org", "--days", "99999999"])
    assert done.exit_code == 2 and "is not in the range" in done.stderr


def test_a_ca_is_never_replaced(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError):
        ca.create(folder, "Another")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_ca_whose_key_was_moved_to_a_safe_place_is_not_replaced_either(folder):
    (folder / "ca.key").unlink()
    before = (folder / "ca.crt").read_bytes()
    with pytest.raises(FileExistsError):
        ca.create(folder, "Another")
    assert (folder / "ca.crt").read_bytes() == before
