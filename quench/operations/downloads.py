"""What is fetched once, is complete or not there, and never changes: Python environments and models."""

from __future__ import annotations

import hashlib
import shlex

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.operations.commands import Commands, script
from quench.plan import Question, recording
from quench.problems import Problem


def python_environment(folder: str, lock: str, *, index_url: str | None, key: str) -> None:
    """Have a Python environment with exactly the packages of a lock file, checked by their hashes.

    Args:
        folder: absolute path of the environment; it is complete or it is built anew.
        lock: text of a requirements file with a hash for each package.
        index_url: package index, such as an internal mirror; None for the one pip is set up with.
        key: the inventory's key that names the lock file.
    """
    what = f"{folder} was built from another lock file, and what is built is never changed"
    remedy = "give the lock file a name of its own, such as 1.2.3+2, and set the key to that"
    want = hashlib.sha256(lock.encode()).hexdigest()
    _stays(f"cat {shlex.quote(folder)}/.complete 2>/dev/null", want, key, what, remedy)
    _python_environment(name=f"Build {folder} from its lock file", folder=folder, lock=lock, index_url=index_url)


@operation()
def _python_environment(folder: str, lock: str, index_url: str | None) -> Commands:
    want = hashlib.sha256(lock.encode()).hexdigest()
    if context.host.get_fact(facts.Text, path=f"{folder}/.complete") != want:
        yield script("python_environment.sh", folder, want, index_url or "", stdin=lock)


def model_files(folder: str, *, url: str, sha256: str, key: str) -> None:
    """Have a model's files in a folder, each verified by checksum before the folder appears.

    Args:
        folder: absolute path, one for each revision.
        url: where SHA256SUMS and the files it names are served.
        sha256: hash of SHA256SUMS itself, in hex.
        key: the inventory's key that names the revision.
    """
    what = f"{folder} holds other files than the inventory pins, and an engine may serve them"
    sums = f"sha256sum {shlex.quote(folder)}/SHA256SUMS 2>/dev/null | cut -d' ' -f1"
    _stays(sums, sha256, key, what, "name a new revision")
    _model_files(name=f"Fetch and verify {folder}", folder=folder, url=url, sha256=sha256)


@operation()
def _model_files(folder: str, url: str, sha256: str) -> Commands:
    if context.host.get_fact(facts.Sha256, path=f"{folder}/SHA256SUMS") != sha256:
        yield script("fetch_model.sh", url, folder, sha256)


def _stays(question: str, want: str, key: str, what: str, remedy: str) -> None:
    """Refuse the run, before it changes anything, if the host has something else already where this is to be."""
    plan = recording()
    if plan is not None:
        problem = Problem(context.host.name, key, what, remedy)
        plan.questions.append(Question(question, lambda answer: [problem] * (answer not in ([], [want]))))
