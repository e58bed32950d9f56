import base64
import os
import re
import shutil
import subprocess

import pytest

from quench import openpgp

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
RUBBISH = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{}\n-----END PGP PUBLIC KEY BLOCK-----\n"


@pytest.fixture(scope="module", params=["rsa2048", "ed25519"])
def gpg(request, tmp_path_factory):
    """gpg with a fresh key of this kind."""
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)

    def run(*arguments):
        command = ["gpg", "--batch", "--pinentry-mode=loopback", "--passphrase=", *arguments]
        environment = {**os.environ, "GNUPGHOME": str(home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    run("--quick-generate-key", "Test", request.param, "sign", "never")
    yield run
    subprocess.run(["gpgconf", "--kill", "all"], env={**os.environ, "GNUPGHOME": str(home)}, check=False)


def only(found):
    (problem,) = found
    return problem


@needs_gpg
def test_the_fingerprint_is_the_one_that_gpg_prints(gpg):
    wanted = re.search(r"^fpr:+([0-9A-F]{40}):", gpg("--with-colons", "--fingerprint"), re.MULTILINE)[1]
    assert openpgp.fingerprint(gpg("--armor", "--export")) == wanted


@needs_gpg
def test_headers_and_windows_line_ends_in_the_armor_change_nothing(gpg):
    armored = gpg("--armor", "--export")
    first, rest = armored.split("\n", 1)
    assert openpgp.fingerprint(f"{first}\nComment: of the house\n{rest}") == openpgp.fingerprint(armored)
    assert openpgp.fingerprint(armored.replace("\n", "\r\n")) == openpgp.fingerprint(armored)


@needs_gpg
def test_a_secret_key_is_refused(gpg):
    with pytest.raises(ValueError, match="private key"):
        openpgp.fingerprint(gpg("--armor", "--export-secret-keys"))


@needs_gpg
def test_a_secret_key_in_the_armor_of_a_public_one_is_refused(gpg):
    with pytest.raises(ValueError, match="public key of version 4"):
        openpgp.fingerprint(gpg("--armor", "--export-secret-keys").replace("PRIVATE", "PUBLIC"))


@needs_gpg
def test_a_key_that_was_cut_short_is_refused(gpg):
    data = base64.b64decode("".join(gpg("--armor", "--export").split("\n\n")[1].split("=")[0].split()) + "==")
    with pytest.raises(ValueError, match="public key"):
        openpgp.fingerprint(RUBBISH.format(base64.b64encode(data[:20]).decode()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a key",
        "<html><body>404 Not Found</body></html>",
        RUBBISH.format(""),
        RUBBISH.format("!!!!"),
        RUBBISH.format("AAAA"),
        RUBBISH.format("/w=="),
        "-----BEGIN PGP SIGNATURE-----\n\niQ==\n-----END PGP SIGNATURE-----\n",
    ],
)
def test_rubbish_is_refused(text):
    with pytest.raises(ValueError, match=r"holds|does not begin"):
        openpgp.fingerprint(text)


@needs_gpg
def test_the_key_that_is_wanted_is_no_problem(gpg, tmp_path):
    armored = gpg("--armor", "--export")
    (tmp_path / "key.asc").write_text(armored)
    wanted = openpgp.fingerprint(armored)
    assert list(openpgp.key_problems("node1", "nvidia_driver", f"{tmp_path}/key.asc", wanted)) == []


@needs_gpg
def test_another_key_is_refused_with_both_fingerprints(gpg, tmp_path):
    armored = gpg("--armor", "--export")
    (tmp_path / "key.asc").write_text(armored)
    problem = only(openpgp.key_problems("node1", "nvidia_driver", f"{tmp_path}/key.asc", "AB" * 20))
    assert problem.key == "nvidia_driver_repository_key"
    assert openpgp.fingerprint(armored) in problem.what
    assert "AB" * 20 in problem.remedy


def test_a_key_that_is_not_there_is_a_problem_with_its_path(tmp_path):
    problem = only(openpgp.key_problems("node1", "nvidia_driver", f"{tmp_path}/absent.asc", "AB" * 20))
    assert "absent.asc" in problem.what


def test_a_key_that_is_not_set_is_a_problem():
    assert only(openpgp.key_problems("node1", "nvidia_driver", "", "AB" * 20)).what == "is not set"


@pytest.mark.parametrize("path", [".", "~no-such-user-here/key.asc", "binary"])
def test_a_file_that_cannot_be_read_is_a_problem_and_no_traceback(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    # As gpg exports it without --armor.
    (tmp_path / "binary").write_bytes(b"\x99\x01\x0d\x04\xff\xfe")
    assert only(openpgp.key_problems("node1", "nvidia_driver", path, "AB" * 20)).key == "nvidia_driver_repository_key"
