"""What `decommission.sh` does on a node: the script itself in a tree of its own, and how its lines are read."""

import base64
import os
import shutil
import subprocess

import pytest

from quench import ca
from quench.decommission import CACHES, MODELS, Found, Leaving, parse
from quench.files import CHECKOUT, ManagedFile
from quench.rollout_fleet import Failure
from quench.rollout_hosts import SshFleet
from quench.secrets import SecretRef
from roles.vllm import VllmSettings
from roles.vllm.files import files as vllm_files
from roles.vllm.files import model_folder

SCRIPT = CHECKOUT / "quench" / "remote" / "decommission.sh"
# systemctl with its units in files, and programs that would reach beyond the tree. `stat -f` says what the test wants.
_PROGRAMS = {
    "systemctl": """\
verb=$1
for unit; do :; done
echo "$verb $unit" >>"$FAKE/calls"
case $verb in
is-active) cat "$FAKE/active/$unit" 2>/dev/null || { echo inactive && exit 3; } ;;
is-enabled) [ -e "$FAKE/enabled/$unit" ] && echo enabled || { echo disabled; exit 1; } ;;
disable) rm -f "$FAKE/enabled/$unit" ;;
stop) [ ! -e "$FAKE/stuck/$unit" ] && rm -f "$FAKE/active/$unit" ;;
esac
""",
    "fstrim": 'echo "fstrim $1" >>"$FAKE/calls"\n',
    "sync": "",
    "stat": 'if [ "$1" = -f ]; then cat "$FAKE/type"; else exec {stat} "$@"; fi\n',
}


class Tree:
    """A node's files in a folder."""

    def __init__(self, folder):
        self.folder, self.fake, self.state = folder, folder / "fake", folder / "state"
        self.models, self.cache, self.home = (
            folder / "srv" / "models",
            folder / "cache" / "vllm",
            folder / "lib" / "vllm",
        )
        for path in ("active", "enabled", "stuck", "bin"):
            (self.fake / path).mkdir(parents=True)
        (self.fake / "type").write_text("xfs\n")
        for name, text in _PROGRAMS.items():
            program = self.fake / "bin" / name
            program.write_text(f"#!/bin/sh\n{text.replace('{stat}', shutil.which('stat'))}")
            program.chmod(0o755)
        for number, unit in enumerate(("ssh.service", "vllm@llama.service", "nginx.service")):
            self.write(f"state/converged/{unit}.restart", "x")
            os.utime(self.state / "converged" / f"{unit}.restart", (number, number))
            self.write(f"fake/active/{unit}", "active\n")
            self.write(f"fake/enabled/{unit}", "")
        self.manage("base", "home/ops/authorized_keys", 0o600)
        self.manage("base-sources", "etc/apt/secret.conf", 0o600)
        self.manage("nginx", "etc/nginx/nginx.conf", 0o644)
        self.manage("nginx", "etc/nginx/tls.key", 0o640)
        self.manage("nginx", "etc/nginx/tls.crt", 0o644)
        self.manage("vllm", "etc/vllm/llama.env", 0o600)
        self.write("srv/models/llama/1/model.safetensors", "weights")
        self.write("cache/vllm/llama/kernel.so", "kernel")
        self.write("lib/vllm/.cache/huggingface/token", "hf_x")
        self.write("state/release/former.tar", "a copy of tls.key")
        self.write("state-acme/tls/tls.crt.key", "key")
        self.write("var/log/access.json", "{}")

    def write(self, path, text):
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def manage(self, role, path, mode):
        target = self.write(path, f"content of {path}")
        target.chmod(mode)
        manifest = self.state / "manifest" / role
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with manifest.open("a") as file:
            file.write(f"{'0' * 64} {mode:o} root root {target}\n")

    def run(self, act, roles="base hardening", units="ssh.service"):
        words = [str(self.state), roles, units, str(self.models), str(self.cache), str(self.home)]
        environment = {**os.environ, "FAKE": str(self.fake), "PATH": f"{self.fake / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", str(SCRIPT), act, *words], env=environment, capture_output=True, text=True, check=False
        )

    def ask(self):
        done = self.run("ask")
        assert (done.returncode, done.stderr) == (0, "")
        # Paths without the folder, so that they can be compared.
        return [line.replace(f"{self.folder}/", "") for line in done.stdout.splitlines() if "certificate" not in line]

    def wipe(self):
        done = self.run("wipe")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def calls(self):
        return (self.fake / "calls").read_text().splitlines()

    def all(self):
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


EVERYTHING = [
    "unit nginx.service active",
    "unit vllm@llama.service active",
    "secret 28 etc/nginx/tls.key",
    "secret 29 etc/vllm/llama.env",
    "secret 3 state-acme",
    "secret 17 state/release",
    "data 1 7 srv/models",
    "data 1 6 cache/vllm",
    "data 1 4 lib/vllm",
]


def test_the_script_says_what_is_there_and_changes_nothing(tree):
    before = tree.all()
    assert tree.ask() == EVERYTHING
    assert tree.all() - {"fake/calls"} == before
    assert {call.split()[0] for call in tree.calls()} == {"is-active", "is-enabled"}


def test_the_script_takes_it_away_and_nothing_else(tree):
    kept = {path for path in tree.all() if path.startswith(("home", "etc/apt", "etc/nginx/nginx.conf", "var"))}
    assert len(kept) == 4
    tree.wipe()
    assert tree.ask() == []
    left = tree.all()
    assert kept <= left
    gone = ("tls.key", "llama.env", "safetensors", "kernel.so", "token", "former.tar")
    assert [path for path in left if path.endswith(gone)] == []
    assert tree.models.is_dir()
    assert list(tree.models.iterdir()) == []


def test_the_way_in_stays_up_and_the_last_that_was_started_stops_first(tree):
    tree.wipe()
    calls = [call for call in tree.calls() if not call.startswith(("is-", "fstrim"))]
    assert calls == [
        "disable nginx.service", "stop nginx.service", "disable vllm@llama.service", "stop vllm@llama.service",
    ]  # fmt: skip
    assert (tree.fake / "active" / "ssh.service").exists()
    assert (tree.fake / "enabled" / "ssh.service").exists()


def test_a_unit_that_would_run_after_a_boot_or_is_on_its_way_up_is_not_overlooked(tree):
    (tree.fake / "active" / "nginx.service").unlink()
    tree.write("fake/active/vllm@llama.service", "activating\n")
    assert tree.ask()[:2] == ["unit nginx.service enabled", "unit vllm@llama.service activating"]


@pytest.mark.parametrize("state", ["failed\n", "inactive\n"])
def test_a_unit_that_has_failed_and_is_disabled_is_over(tree, state):
    tree.write("fake/active/nginx.service", state)
    (tree.fake / "enabled" / "nginx.service").unlink()
    assert "nginx.service" not in " ".join(tree.ask())


def test_an_engine_that_does_not_stop_keeps_everything(tree):
    before = tree.all() - {"fake/enabled/nginx.service", "fake/active/nginx.service", "fake/enabled/vllm@llama.service"}
    tree.write("fake/stuck/vllm@llama.service", "")
    done = tree.run("wipe")
    assert done.returncode == 1
    assert "vllm@llama.service does not stop, and nothing was removed" in done.stderr
    assert before <= tree.all()


def test_a_wipe_can_be_run_again_wherever_it_was_killed(tree):
    # As a run leaves it that ends before the manifests are written, between two models, or with a file on its way.
    (tree.folder / "etc/nginx/tls.key").unlink()
    tree.write("etc/vllm/llama.env.quench-new", "HF_TOKEN=x")
    tree.write("state/release/keep.AbCdEf/former.tar", "x")
    assert "secret 10 etc/vllm/llama.env.quench-new" in tree.ask()
    tree.wipe()
    assert tree.ask() == []
    tree.wipe()
    assert tree.ask() == []


def test_manifests_name_no_file_that_is_meant_to_be_gone(tree):
    tree.wipe()
    named = {
        path.name: [line.rpartition("/")[2] for line in path.read_text().splitlines()]
        for path in (tree.state / "manifest").iterdir()
    }
    assert named == {
        "base": ["authorized_keys"], "base-sources": ["secret.conf"], "nginx": ["nginx.conf", "tls.crt"], "vllm": [],
    }  # fmt: skip


def test_the_certificate_can_be_read_after_the_wipe_as_well(tree):
    tree.wipe()
    (line,) = [line for line in tree.run("ask").stdout.splitlines() if line.startswith("certificate")]
    assert base64.b64decode(line.split(" ")[1]) == b"content of etc/nginx/tls.crt"
    assert line.endswith("/etc/nginx/tls.crt")


def test_the_folder_of_the_models_may_be_a_link_to_where_there_is_room(tree):
    room = tree.folder / "data" / "room"
    room.parent.mkdir()
    tree.models.rename(room)
    tree.models.symlink_to(room)
    assert "data 1 7 data/room" in tree.ask()
    tree.wipe()
    assert list(room.iterdir()) == []
    assert tree.models.is_symlink()


def test_a_link_to_the_folder_of_the_system_is_not_followed(tree):
    shutil.rmtree(tree.models)
    tree.models.symlink_to("/usr")
    assert [line for line in tree.ask() if "srv/models" in line] == ["elsewhere srv/models -> /usr"]
    tree.wipe()
    assert (tree.folder / "etc").exists()
    assert tree.ask() == ["elsewhere srv/models -> /usr"]


def test_a_link_out_of_the_models_is_told_and_not_followed_until_somebody_has_looked(tree):
    other = tree.write("data/big/model.safetensors", "weights")
    (tree.models / "big one").symlink_to(other.parent)
    (tree.models / "llama" / "blob").symlink_to("1/model.safetensors")
    (tree.models / "nowhere").symlink_to("/nowhere/at/all")
    (tree.cache / "libcuda.so").symlink_to(shutil.which("sh"))
    line = "elsewhere srv/models/big one -> data/big"
    assert [said for said in tree.ask() if said.startswith("elsewhere")] == [line]
    tree.wipe()
    assert tree.ask() == [line]
    assert other.read_text() == "weights"
    (tree.models / "big one").unlink()
    assert tree.ask() == []


@pytest.mark.parametrize("system", ["nfs", "fuseblk", "UNKNOWN (0x1)"])
def test_weights_that_other_hosts_may_use_are_left_alone(tree, system):
    (tree.fake / "type").write_text(f"{system}\n")
    tree.wipe()
    assert [line for line in tree.ask() if "models" in line] == [f"shared {system} srv/models"]
    assert (tree.models / "llama/1/model.safetensors").exists()
    assert not (tree.folder / "etc/nginx/tls.key").exists()


def test_the_disk_is_told_which_blocks_are_free(tree):
    told = tree.wipe()
    assert "trimmed /" in told
    assert [f"trimmed {call.split()[1]}" for call in tree.calls() if call.startswith("fstrim")] == told
    (tree.fake / "bin" / "fstrim").write_text("#!/bin/sh\nexit 1\n")
    assert tree.wipe() == [], "not every disk can"


@pytest.mark.parametrize("empty", ["roles", "units"])
def test_without_anything_that_stays_the_script_does_nothing(tree, empty):
    before = tree.all()
    done = tree.run("wipe", **{empty: ""})
    assert done.returncode == 1
    assert "the way in would go as well" in done.stderr
    assert tree.all() == before


def test_a_host_without_manifests_is_not_taken_for_a_clean_one(tree):
    shutil.rmtree(tree.state / "manifest")
    for act in ("ask", "wipe"):
        done = tree.run(act)
        assert done.returncode == 1
        assert "nobody else knows where the secrets are" in done.stderr
    assert (tree.folder / "etc/nginx/tls.key").exists()


def test_the_lines_of_the_script_are_read(tmp_path):
    ca.create(tmp_path, "Test CA")
    certificate, _ = ca.issue(tmp_path, ["node3"])
    encoded = {path.name: base64.b64encode(path.read_bytes()).decode() for path in (certificate, tmp_path / "ca.crt")}
    found, certificates = parse([
        "unit vllm@a.service activating",
        "secret 12 /etc/a b.key",
        "data 3 5000000000 /srv/models",
        "elsewhere /srv/models/a b -> /data/c d",
        "shared nfs /srv/models",
        f"certificate {encoded['node3.crt']} /etc/nginx/quench/tls.crt",
        f"certificate {encoded['ca.crt']} /etc/nginx/quench/balancer-ca.crt",
        "certificate bm9uZQ== /etc/x.crt",
    ])  # fmt: skip
    assert found == [
        Found("unit", "vllm@a.service", "activating"),
        Found("secret", "/etc/a b.key", size=12),
        Found("data", "/srv/models", files=3, size=5_000_000_000),
        Found("elsewhere", "/srv/models/a b", "/data/c d"),
        Found("shared", "/srv/models", "nfs"),
    ]
    (only,) = certificates
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial", "-in", str(certificate)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip().removeprefix("serial=").lstrip("0") == only.serial
    assert only.path == "/etc/nginx/quench/tls.crt"


@pytest.mark.parametrize("line", ["something else", "secret many /x", "data 3", ""])
def test_another_answer_is_an_error(line):
    with pytest.raises(ValueError):
        parse([line])


NODE = Leaving("node3", ("base", "hardening"), ("ssh.service",), secrets=(), certificates=(), todo=())


class FakeHosts:
    def __init__(self, *lines):
        self.lines, self.asked = list(lines), []

    def group(self, name):
        return []

    def root(self, name, command, *, stdin=None, seconds=0):
        self.asked.append(command)
        return self.lines


def site(tmp_path, *lines):
    hosts = FakeHosts(*lines)
    return SshFleet(hosts, [], [], None, tmp_path), hosts


def test_a_node_is_asked_at_once_and_wiped_when_nobody_else_works_on_it(tmp_path):
    made, hosts = site(tmp_path, "unit nginx.service active")
    assert made.remains(NODE) == ([Found("unit", "nginx.service", "active")], [])
    made.wipe(NODE)
    asked, wiped = hosts.asked
    words = f"/var/lib/quench 'base hardening' ssh.service {MODELS} {' '.join(CACHES)}"
    assert asked.startswith("sh -c ") and asked.endswith(f"decommission.sh ask {words}")
    assert wiped.startswith("flock ") and f"decommission.sh wipe {words}" in wiped


def test_an_answer_that_is_none_is_a_failure_of_the_node(tmp_path):
    made, _ = site(tmp_path, "hello")
    with pytest.raises(Failure, match=r"node3: .*: gives no account of what it has: hello"):
        made.remains(NODE)


def test_disks_that_were_told_are_named(tmp_path):
    assert site(tmp_path, "trimmed /", "trimmed /srv/models")[0].wipe(NODE) == ["/", "/srv/models"]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o601])
def test_a_file_with_a_secret_is_never_open_to_others_by_which_it_is_known(mode):
    with pytest.raises(ValueError, match="would be open to everyone"):
        ManagedFile("/x", "x", mode=mode, secrets=(SecretRef("env:X"),))


def test_the_folders_are_those_of_the_engines(vllm_data):
    settings = VllmSettings.load("node3", vllm_data)
    assert model_folder("llama", settings.models["llama"]).startswith(f"{MODELS}/")
    text = "\n".join(file.content for file in vllm_files(settings) if isinstance(file, ManagedFile))
    assert "\nCacheDirectory=vllm/llama" in text and "\nStateDirectory=vllm\n" in text
    assert set(CACHES) == {"/var/cache/vllm", "/var/lib/vllm"}
