import base64
import os
import subprocess

import pytest

from quench import ca, certificates
from quench.contracts import Certificate
from roles.acme import AcmeSettings, files
from roles.acme.files import issued, wanted
from roles.nginx import NginxSettings
from roles.nginx import files as nginx_files
from tests.unit.conftest import SERVER_NAME

DATA = {
    "platform": "debian-12",
    "acme_directory": "https://ca.example.org/acme/directory",
    "acme_names": [SERVER_NAME],
}
KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest.fixture
def found(problems):
    return lambda **changes: problems(AcmeSettings, DATA | changes)


def settings(**changes):
    return AcmeSettings.load("node1", DATA | changes)


def rendered(**changes):
    return {file.dest: file for file in files(settings(**changes), "nginx.service")}


def test_good_settings_have_no_problem(found, pki):
    assert found() == []
    assert found(acme_directory_ca=str(pki / "ca.crt"), acme_email="pki@example.org") == []
    # A host that has files needs nothing of this.
    assert found(acme_directory=None, acme_names=[]) == []


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("directory", "http://ca.example.org/directory", "string should match pattern"),
        ("directory", "https://ca.example.org/a b", "string should match pattern"),
        ("names", [], "is empty"),
        ("names", ["*.example.org"], "string should match pattern"),
        ("names", ["LLM.example.org"], "string should match pattern"),
        ("names", ["llm.example.org\nserver = x"], "string should match pattern"),
        ("email", "pki", "string should match pattern"),
        ("directory_ca", "/no/such/ca.crt", "No such file"),
        ("renew_days", 0, "greater than or equal to 1"),
    ],
)
def test_bad_settings_are_one_problem_in_one_line(found, key, value, what):
    (problem,) = found(**{f"acme_{key}": value})
    assert problem.key.startswith(f"acme_{key}")
    assert what in problem.what
    assert problem.remedy and "\n" not in str(problem)


def test_half_an_account_is_refused(found, monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_ACME", KEY)
    assert [problem.key for problem in found(acme_account_id="4711")] == ["acme_account_key"]
    assert [problem.key for problem in found(acme_account_key="env:QUENCH_TEST_ACME")] == ["acme_account_id"]
    assert found(acme_account_id="4711", acme_account_key="env:QUENCH_TEST_ACME") == []


def test_the_accounts_key_is_for_root_and_certbot(monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_ACME", KEY)
    ini = rendered(acme_account_id="4711", acme_account_key="env:QUENCH_TEST_ACME")["/etc/quench-acme/certbot.ini"]
    # Not for the group, which opens the certificate's key to the service.
    assert (ini.mode, ini.owner) == (0o400, "acme")
    assert KEY not in ini.content and f"eab-hmac-key = {KEY}".encode() in ini.revealed()


def test_another_ca_or_other_names_need_another_certificate():
    first = wanted(settings())
    assert wanted(settings(acme_names=[SERVER_NAME, "b.example.org"])) != first
    assert wanted(settings(acme_directory="https://other.example.org/directory")) != first
    # And each CA its own account.
    folders = {
        line
        for directory in ("https://a.example.org/d", "https://b.example.org/d")
        for line in rendered(acme_directory=directory)["/etc/quench-acme/certbot.ini"].content.splitlines()
        if line.startswith("config-dir")
    }
    assert len(folders) == 2


def test_a_server_has_exactly_one_certificate(nginx_data):
    by_ca = issued(settings())
    data = {key: value for key, value in nginx_data.items() if key not in ("nginx_certificate", "nginx_private_key")}

    def keys(data, certificate):
        given = NginxSettings.load("node1", data)
        source = (given.certificate, given.private_key, certificate, given.server_name)
        return [problem.key for problem in certificates.source_problems("node1", "nginx", *source)]

    assert keys(nginx_data, Certificate()) == [] and keys(data, by_ca) == []
    assert keys(data, Certificate()) == ["nginx_certificate", "nginx_private_key"]
    assert keys(nginx_data, by_ca) == ["nginx_certificate", "nginx_private_key"]
    assert keys(data | {"nginx_server_name": "other.example.org"}, by_ca) == ["acme_names"]


def test_a_server_reads_what_the_ca_gave_and_brings_no_pair_of_its_own(nginx_data, engines):
    by_ca = Certificate(
        "/var/lib/quench-acme/tls/tls.crt", "/var/lib/quench-acme/tls/tls.crt.key", "acme", (SERVER_NAME,)
    )
    data = nginx_data | {"nginx_certificate": None, "nginx_private_key": None}
    found = {file.dest: file for file in nginx_files(NginxSettings.load("node1", data), engines, by_ca)}
    assert [path for path in found if "tls" in path] == []
    assert "ssl_certificate_key /var/lib/quench-acme/tls/tls.crt.key;" in found["/etc/nginx/nginx.conf"].content
    # The key is open to the service alone, not to all that runs as its user.
    assert "SupplementaryGroups=acme\n" in found["/etc/systemd/system/nginx.service"].content
    assert "--groups=acme " in found["/etc/nginx/nginx.conf"].check


@pytest.fixture
def host(tmp_path, me):
    """The two scripts in a tree of their own, with commands that say what they were called with."""
    folder, commands = tmp_path / "acme", tmp_path / "bin"
    ini = rendered()["/etc/quench-acme/certbot.ini"].content
    config = next(line.split(" = ")[1] for line in ini.splitlines() if line.startswith("config-dir"))
    config = folder / config.removeprefix("/var/lib/quench-acme/")
    for path in (folder / "certbot", commands):
        path.mkdir(parents=True)
    for name, body in {
        "setpriv": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "systemctl": f'echo "$*" >>{tmp_path}/said; [ "$1" != reload ] || [ ! -e {tmp_path}/refuses ]',
        "chgrp": "true",
        "certbot": f'echo "certbot $*" >>{tmp_path}/said && mkdir -p {config}',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)

    def script(name):
        text = rendered()[f"/usr/local/lib/quench/{name}"].content.replace("/var/lib/quench-acme", str(folder))
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["sh", str(tmp_path / name)], env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []
        (tmp_path / "said").unlink(missing_ok=True)
        return done.returncode, done.stderr, said

    def deliver(days=90, key=None):
        """As certbot does."""
        live = config / "live" / "quench"
        live.mkdir(parents=True, exist_ok=True)
        authority = tmp_path / base64.b32encode(os.urandom(5)).decode()
        ca.create(authority, "An ACME CA")
        certificate, private = ca.issue(authority, [SERVER_NAME], days=days)
        (live.parents[1] / "renewal").mkdir(exist_ok=True)
        (live.parents[1] / "renewal" / "quench.conf").write_text("[renewalparams]")
        (live / "fullchain.pem").write_text(certificate.read_text())
        (live / "privkey.pem").write_text(key or private.read_text())
        return certificate.read_text(), private.read_text()

    return folder, script, deliver


def test_the_service_gets_certificate_and_key_at_once_and_is_reloaded(host):
    folder, script, deliver = host
    code, said, _ = script("acme-take")
    assert code == 1 and "has left no certificate" in said
    for _ in range(2):
        certificate, key = deliver()
        code, _, said = script("acme-take")
        assert (code, said) == (0, ["is-active --quiet nginx.service", "reload nginx.service"])
        assert (folder / "tls" / "tls.crt").read_text() == certificate
        assert (folder / "tls" / "tls.crt.key").read_text().strip() == key.strip()
        assert (folder / "tls" / "tls.crt.key").stat().st_mode & 0o777 == 0o640
        # Nothing is done twice, and nothing of before is kept.
        assert script("acme-take") == (0, "", [])
        assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["certbot", "pair", "tls"]


def test_a_certificate_that_the_service_does_not_take_is_tried_again(host, tmp_path):
    folder, script, deliver = host
    former, _ = deliver()
    assert script("acme-take")[0] == 0
    certificate, _ = deliver()
    (tmp_path / "refuses").touch()
    code, said, _ = script("acme-take")
    assert code == 1 and "the former one stays" in said
    assert (folder / "tls" / "tls.crt").read_text() == former
    (tmp_path / "refuses").unlink()
    assert script("acme-take")[2] == ["is-active --quiet nginx.service", "reload nginx.service"]
    assert (folder / "tls" / "tls.crt").read_text() == certificate


def test_what_died_before_the_reload_is_made_good(host):
    folder, script, deliver = host
    deliver()
    script("acme-take")
    (folder / "tls" / "read").unlink()
    assert script("acme-take")[2] == ["is-active --quiet nginx.service", "reload nginx.service"]
    assert script("acme-take")[2] == []


def test_what_another_ca_gave_goes(host):
    folder, script, deliver = host
    (folder / "certbot" / "another" / "accounts").mkdir(parents=True)
    deliver()
    assert script("acme-take")[0] == 0
    assert len(list((folder / "certbot").iterdir())) == 1


def test_a_first_attempt_that_was_cut_off_is_begun_anew(host):
    folder, script, deliver = host
    deliver()
    (config,) = (folder / "certbot").glob("*/config")
    (config / "renewal" / "quench.conf").write_text("")
    script("acme-renew")
    assert not (config / "live" / "quench").exists() and not (config / "renewal" / "quench.conf").exists()


def test_a_key_of_another_certificate_is_not_taken(host):
    folder, script, deliver = host
    certificate, other = deliver()
    assert script("acme-take")[0] == 0
    deliver(key=other)
    code, said, _ = script("acme-take")
    assert code == 1 and "no pair" in said
    assert (folder / "tls" / "tls.crt").read_text() == certificate


def test_the_ca_is_asked_once_the_end_is_near_and_not_before(host):
    _, script, deliver = host
    asked = ["certbot certonly --config /etc/quench-acme/certbot.ini"]
    assert script("acme-renew")[2] == asked
    deliver(days=90)
    script("acme-take")
    assert script("acme-renew")[2] == []
    deliver(days=29)
    script("acme-take")
    assert script("acme-renew")[2] == asked


def test_a_certificate_that_somebody_took_away_does_not_come_back(host):
    """As the guide to certificates says, after a key was stolen."""
    folder, script, deliver = host
    assert script("acme-renew")[0] == 0
    stolen, _ = deliver(days=90)
    assert script("acme-take")[0] == 0
    (folder / "tls").unlink()
    assert script("acme-renew")[2] == ["certbot certonly --config /etc/quench-acme/certbot.ini"]
    certificate, _ = deliver(days=90)
    assert script("acme-take")[0] == 0
    assert (folder / "tls" / "tls.crt").read_text() == certificate != stolen


def test_a_certificate_that_the_service_refused_is_not_ordered_again(host, tmp_path):
    folder, script, deliver = host
    asked = ["certbot certonly --config /etc/quench-acme/certbot.ini"]
    deliver(days=29)
    script("acme-take")
    assert script("acme-renew")[2] == asked
    certificate, _ = deliver(days=90)
    (tmp_path / "refuses").touch()
    assert script("acme-take")[0] == 1
    assert script("acme-renew")[2] == []
    # But for one that was asked for with other names, or that has no key.
    (stamp,) = folder.glob("certbot/*/wanted")
    stamp.write_text("for other names\n")
    assert script("acme-renew")[2] == asked
    _, key = deliver(days=90)
    deliver(days=90, key=key)
    assert script("acme-renew")[2] == asked
    certificate, _ = deliver(days=90)
    (tmp_path / "refuses").unlink()
    assert script("acme-take")[0] == 0
    assert (folder / "tls" / "tls.crt").read_text() == certificate
