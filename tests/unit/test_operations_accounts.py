import pytest

from quench.operations import accounts


@pytest.fixture
def account(shell, commands):
    def run(*answers, groups=()):
        wanted = {"user": "ops", "home": "/home/ops", "shell": "/bin/bash", "groups": list(groups)}
        return [shell(command) for command in commands(accounts._account, answers, **wanted)]

    return run


def test_a_missing_user_is_made_without_a_home_and_then_put_into_its_groups(account):
    create, add = account(groups=["sudo"])
    assert create.endswith("useradd --system --user-group --no-create-home --home-dir /home/ops --shell /bin/bash ops")
    assert add == "usermod --append --groups sudo ops"


def test_a_user_as_wanted_is_left_alone_with_its_other_groups(account):
    assert account("home=/home/ops", "shell=/bin/bash", "groups=ops sudo audio", groups=["sudo"]) == []


def test_a_user_with_another_shell_is_changed(account):
    (command,) = account("home=/home/ops", "shell=/bin/sh", "groups=ops")
    assert command == "usermod --home /home/ops --shell /bin/bash ops"
