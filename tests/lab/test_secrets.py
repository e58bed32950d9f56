"""Secrets show up nowhere but in their place: canaries are looked for in every output of every command."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import CANARY_TOKEN
from support import CHECKOUT, DEPLOY, Node, environment, pyinfra_command, run_pyinfra, run_quench, write_inventory


@pytest.fixture(scope="module")
def secrets(stand_in_node: Node) -> dict[str, str]:
    stand_in_node.environment["HF_TOKEN"] = CANARY_TOKEN
    key = stand_in_node.lab.folder / "ca" / f"{stand_in_node.address}.key"
    return {"API key": stand_in_node.key, "TLS key": key.read_text().splitlines()[1], "token": CANARY_TOKEN}


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_inventory(tmp_path_factory.mktemp("secrets"), {"*": {"vllm_hf_token": "env:HF_TOKEN"}})


def leaks(text: str, secrets: dict[str, str]) -> list[str]:
    import base64

    found = [name for name, value in secrets.items() if value in text]
    # Whatever travels encoded counts as well.
    found += [
        f"{name} in base64"
        for name, value in secrets.items()
        if base64.b64encode(value.encode())[4:-8].decode() in text
    ]
    # What is brought to a host travels in an archive, in which no secret would be found: gzip's first bytes in base64.
    found += ["an archive of files"] * ("H4sIA" in text)
    return found


def test_the_secrets_are_on_the_host_where_they_belong(
    stand_in_node: Node, secrets: dict[str, str], inventory: str
) -> None:
    """Else the other tests would look for what is not there. Also the first of the outputs: a run that changes."""
    stand_in_node.root("rm -f /etc/vllm/*.env /etc/nginx/quench/tls.key")
    watched: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            watched.append(stand_in_node.root("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '", check=False))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = run_pyinfra(stand_in_node, "-y", "-vvv", "--debug", inventory=inventory)
    done.set()
    watcher.join()
    assert run.code == 0, run.text[-3000:]
    assert secrets["token"] in stand_in_node.root("cat /etc/vllm/tiny-llama.env")
    assert secrets["TLS key"] in stand_in_node.root("cat /etc/nginx/quench/tls.key")
    assert leaks(run.text, secrets) == []
    assert leaks("\n".join(watched), secrets) == []
    assert len(watched) > 3


@pytest.mark.parametrize(
    "options",
    [
        ["-y", "-vvv"], ["--dry", "-vvv"], ["--dry", "--diff", "-vvv"], ["-y", "--diff", "-vvv"], ["-y", "--json"],
        ["--dry", "--json"], ["--debug-facts", "-y", "-vvv"], ["--debug-operations", "-y", "-vvv"],
        ["--debug-operations", "--json", "-y"], ["-y", "--debug-all", "-vvv"],
    ],
    ids=lambda options: " ".join(options),
)  # fmt: skip
def test_no_output_of_pyinfra_has_a_secret(
    options: list[str], stand_in_node: Node, secrets: dict[str, str], inventory: str
) -> None:
    # So that there is something to change, to show, and to compare.
    stand_in_node.root("echo '# drift' >>/etc/vllm/tiny-llama.env; echo >>/etc/nginx/quench/tls.key")
    run = run_pyinfra(stand_in_node, *options, inventory=inventory)
    assert run.code == 0, run.text[-2000:]
    assert leaks(run.text, secrets) == []


def test_debug_inventory_has_no_secret(stand_in_node: Node, secrets: dict[str, str], inventory: str) -> None:
    command = pyinfra_command(inventory, deploy="debug-inventory")
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment(stand_in_node), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "env:HF_TOKEN" in done.stdout + done.stderr
    assert leaks(done.stdout + done.stderr, secrets) == []


def test_a_failing_run_has_no_secret(stand_in_node: Node, secrets: dict[str, str], inventory: str) -> None:
    module = "/usr/lib/nginx/modules/ngx_http_js_module.so"
    stand_in_node.root(f"mv {module} {module}.away; echo >>/etc/nginx/quench/tls.key")
    try:
        run = run_pyinfra(stand_in_node, "-y", "-vvv", inventory=inventory)
    finally:
        stand_in_node.root(f"mv {module}.away {module}")
    assert run.code == 1
    assert leaks(run.text, secrets) == []
    assert run_pyinfra(stand_in_node, "-y", inventory=inventory).code == 0


def test_the_rendered_tree_has_no_secret(
    stand_in_node: Node, secrets: dict[str, str], inventory: str, tmp_path: Path
) -> None:
    for words in (["check"], ["render", "--out", str(tmp_path)]):
        done = run_quench(stand_in_node, words[0], inventory, DEPLOY, *words[1:], timeout=60)
        # quench has no --group-data: the keys of that folder are not needed for rendering the lab.
        assert done.code == 0, done.err
        assert leaks(done.text, secrets) == []
    text = "\n".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "HF_TOKEN=<secret env:HF_TOKEN>" in text
    assert leaks(text, secrets) == []


def test_the_hosts_journal_process_list_and_open_files_have_no_secret(
    stand_in_node: Node, secrets: dict[str, str], inventory: str
) -> None:
    assert run_pyinfra(stand_in_node, "-y", inventory=inventory).code == 0
    stand_in_node.request("/v1/models", key=stand_in_node.key)
    time.sleep(0.2)
    assert (
        leaks(
            stand_in_node.root("journalctl --no-pager -o export | strings 2>/dev/null || journalctl --no-pager"),
            secrets,
        )
        == []
    )
    assert leaks(stand_in_node.root("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False), secrets) == []
    world = "find / /dev/shm /run /tmp -xdev -type f -perm -o=r -size -1000k"
    for name, value in secrets.items():
        found = stand_in_node.root(f"{world} -exec grep -lF -e '{value}' {{}} + 2>/dev/null", check=False)
        assert found == "", f"{name} can be read by everyone in {found}"
    # The API key stands nowhere at all: the host knows only its hash.
    assert stand_in_node.root(f"grep -rlF -e '{secrets['API key']}' /etc /var /opt /srv 2>/dev/null", check=False) == ""
