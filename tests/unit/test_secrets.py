import pytest
from pydantic import BaseModel, ValidationError

from quench import secrets
from quench.secrets import SecretRef, SecretUnavailable

CANARY = "canary-5f1d"


class Holder(BaseModel):
    token: SecretRef


@pytest.fixture
def from_env(monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_TOKEN", CANARY)
    return SecretRef("env:QUENCH_TEST_TOKEN")


@pytest.fixture(autouse=True)
def _forget():
    secrets._resolve.cache_clear()
    yield
    # A later test must not find a value of this one under the same reference.
    secrets._resolve.cache_clear()


def test_an_environment_variable_is_read(from_env):
    assert from_env.resolve() == CANARY


def test_a_file_is_read(tmp_path):
    (tmp_path / "token").write_text(CANARY)
    assert SecretRef(f"file:{tmp_path}/token").resolve() == CANARY


def test_a_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text(CANARY)
    assert SecretRef("file:~/token").resolve() == CANARY


def test_a_command_is_run_by_a_shell():
    assert SecretRef(f"command:printf '%s' {CANARY} | tr a-z A-Z").resolve() == CANARY.upper()


def test_only_the_newline_at_the_end_goes(tmp_path):
    (tmp_path / "key").write_text("first \n\n  second\n\n")
    assert SecretRef(f"file:{tmp_path}/key").resolve() == "first \n\n  second"


def test_a_command_runs_once_so_that_the_value_checked_is_the_value_used(tmp_path):
    secret = SecretRef(f"command:echo run >>{tmp_path}/runs; wc -l <{tmp_path}/runs")
    assert secret.resolve() == SecretRef(secret.reference).resolve()
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("env:QUENCH_TEST_ABSENT", "QUENCH_TEST_ABSENT is not set"),
        ("file:{folder}/absent", "No such file"),
        ("file:{folder}", "Is a directory"),
        ("file:{folder}/binary", "not text"),
        ("file:{folder}/empty", "empty"),
        ("command:exit 3", "exit code 3"),
        ("command:true", "empty"),
    ],
)
def test_a_secret_without_a_value_says_why(tmp_path, reference, reason):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SecretUnavailable, match=reason):
        SecretRef(reference.format(folder=tmp_path)).resolve()


def test_an_empty_variable_is_no_secret(monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_EMPTY", "")
    with pytest.raises(SecretUnavailable, match="empty"):
        SecretRef("env:QUENCH_TEST_EMPTY").resolve()


def test_a_command_that_prints_no_text_is_unavailable_and_no_traceback():
    with pytest.raises(SecretUnavailable):
        SecretRef("command:printf '\\377'").resolve()


def test_the_home_folder_of_nobody_is_unavailable_and_no_traceback():
    with pytest.raises(SecretUnavailable):
        SecretRef("file:~no-such-user-here/token").resolve()


def test_a_failing_command_shows_nothing_of_what_it_printed():
    with pytest.raises(SecretUnavailable) as caught:
        SecretRef(f"command:echo {CANARY} | tr a-z A-Z | tee /dev/stderr; false").resolve()
    assert CANARY.upper() not in str(caught.value)


def test_no_text_form_of_a_reference_shows_the_value(from_env):
    from_env.resolve()
    holder = Holder(token=from_env)
    shown = [str(from_env), repr(from_env), f"{from_env}", str(holder), repr(holder), str(holder.model_dump())]
    assert CANARY not in " ".join(shown)
    assert str(from_env) == "<secret env:QUENCH_TEST_TOKEN>"


@pytest.mark.parametrize("value", [CANARY, f"vault:{CANARY}", "env:", ":x", "", 7, None, [CANARY], b"env:X"])
def test_what_is_no_reference_is_refused_and_not_repeated(value):
    with pytest.raises(ValidationError) as caught:
        Holder(token=value)
    message = caught.value.errors()[0]["msg"]
    assert "env:NAME" in message
    assert CANARY not in message


def test_a_colon_in_a_command_belongs_to_the_command():
    assert Holder(token="command:echo a:b").token.resolve() == "a:b"
