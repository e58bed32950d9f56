"""The script that looks for certificates that end soon, run against real ones. Its sandbox is not here."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from quench import ca
from roles.hardening import HardeningSettings, files
from roles.hardening.files import EXPIRY


@pytest.fixture
def pem(tmp_path):
    """A certificate that ends in so many days, as text."""
    ca.create(tmp_path / "ca", "Test CA")

    def issue(days, name="llm.example.org"):
        return ca.issue(tmp_path / "ca", [name], days=days)[0].read_text()

    return issue


@pytest.fixture
def expiry(tmp_path):
    """The script's exit status and its lines, where these are Quench's files on the host. None: it is not there."""

    def run(contents, **settings):
        manifest = tmp_path / "manifest"
        manifest.mkdir()
        for name, content in contents.items():
            if content is not None:
                (tmp_path / name).write_text(content)
            # A role for each file.
            (manifest / name).write_text(f"{'0' * 64} 644 root root {tmp_path / name}\n")
        loaded = HardeningSettings.load("node1", {"platform": "debian-12", **settings})
        (script,) = (file.content for file in files(loaded) if file.dest == EXPIRY)
        assert script.count("/var/lib/quench/manifest/") == 1
        script = script.replace("/var/lib/quench/manifest/", f"{manifest}/")
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.replace(f"{tmp_path}/", "").splitlines()

    return run


def end(days):
    """The last day of a certificate: it is valid from an hour ago."""
    return f"{datetime.now(UTC) + timedelta(days=days, hours=-1):%Y-%m-%d}"


def test_certificates_with_time_left_are_not_worth_a_word(expiry, pem):
    assert expiry({"a.crt": pem(90), "b.crt": pem(22) + pem(3650)}) == (0, [])


def test_a_certificate_that_ends_soon_is_named_with_its_subject_and_its_end(expiry, pem):
    code, (line,) = expiry({"a.crt": pem(90), "b.crt": pem(5, "soon.example.org")})
    assert code == 1
    assert line.startswith(f"b.crt: CN=soon.example.org is valid until {end(5)} ")


def test_an_expired_certificate_is_named(expiry, pem):
    code, (line,) = expiry({"a.crt": pem(0)})
    assert code == 1
    assert line.startswith(f"a.crt: CN=llm.example.org is valid until {end(0)} ")


def test_every_certificate_of_a_bundle_counts(expiry, pem):
    bundle = f"# of the site\n{pem(90)}\n{pem(5, 'second.example.org')}{pem(90)}{pem(0, 'last.example.org')}"
    code, lines = expiry({"chain.crt": bundle})
    assert code == 1
    assert [line.split()[1] for line in lines] == ["CN=second.example.org", "CN=last.example.org"]


def test_the_days_are_a_setting(expiry, pem):
    assert expiry({"a.crt": pem(25)}, hardening_certificate_days=26)[0] == 1


@pytest.mark.parametrize("keep", [0, 200])
def test_a_certificate_that_is_broken_is_named_and_hides_no_other(expiry, pem, keep):
    broken = pem(90)[: len("-----BEGIN CERTIFICATE-----\n") + keep] + "\n-----END CERTIFICATE-----\n"
    code, lines = expiry({"a.crt": broken + pem(5), "b.crt": pem(5)})
    assert code == 1
    assert lines[0] == "a.crt: certificate 1, which openssl cannot read"
    assert [line.split()[0] for line in lines[1:]] == ["a.crt:", "b.crt:"]


def test_other_files_and_those_that_are_gone_are_passed_over(expiry, pem):
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    text = "# begins with -----BEGIN CERTIFICATE-----\n"
    code, lines = expiry({"tls.key": key, "a.conf": text, "gone.crt": None, "b.crt": pem(5)})
    assert (code, [line.split()[0] for line in lines]) == (1, ["b.crt:"])


def test_a_subject_stays_in_its_line(expiry, pem):
    _, lines = expiry({"a.crt": pem(5, "a\nb.crt: CN=\\c%s")})
    assert len(lines) == 1
    assert " is valid until " in lines[0]


def test_where_no_manifest_is_nothing_is_well(expiry):
    assert expiry({})[0] != 0
