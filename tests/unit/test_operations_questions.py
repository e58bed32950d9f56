import subprocess

from quench import facts
from quench.operations import questions
from quench.plan import HostPlan


def test_what_is_well_is_not_mended(shell, commands):
    wanted = {"question": "how-is-it", "command": "mend it"}
    assert commands(questions._ensure, {"how-is-it": []}, **wanted) == []
    (command,) = commands(questions._ensure, {"how-is-it": ["stale"]}, **wanted)
    assert shell(command) == "mend it"


def test_a_question_is_asked_as_one_command_whatever_stands_in_it():
    command = facts.Lines().command('echo a; echo "b\'s"; false')
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, facts.Lines().process(done.stdout.splitlines())) == (0, ["a", "b's"])


def test_an_empty_answer_is_none():
    assert facts.Lines().process(["", ""]) == []


def test_a_host_on_which_nothing_is_amiss_is_confirmed_without_a_command(commands):
    assert commands(questions._confirm, [], question="what") == []


def test_what_is_amiss_ends_the_run_on_the_host_with_a_line_each(commands):
    amiss = ["nvidia_driver_version: it isn't loaded; look", "nvidia_driver_gpus: $(touch /tmp/x) `id`; count"]
    (command,) = commands(questions._confirm, amiss, question="what")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"@fake: {line}" for line in amiss]


def test_a_host_is_asked_in_the_plan_and_not_in_the_run(monkeypatch, this_machine):
    questions.ask("true", lambda answer: [])
    plan = HostPlan("node1")
    monkeypatch.setattr(questions, "recording", lambda: plan)
    questions.ask("cat /proc/version", lambda answer: answer)
    (question,) = plan.questions
    assert (question.command, question.problems(["a"])) == ("cat /proc/version", ["a"])
