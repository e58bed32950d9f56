"""The rendered trees, byte for byte. `make update-golden` writes them anew; the diff is what hosts would get."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import pytest

from quench.plan import load_inventory, make_plan
from quench.preflight import offline_problems
from quench.render import write_tree

GOLDEN = Path(__file__).parent
# Certificates are the site's own, and new for each run of the tests.
CERTIFICATES = ("tls.crt", "client-ca.crt", "directory-ca.crt", "balancer-ca.crt", "node.crt", "nodes-ca.crt")
# Inventory, deploy file, and the hosts, if not all.
TREES = [
    ("example", "inference", ()),
    ("medium", "balancer", ("balancers",)),
    ("medium", "inference", ("node1.example.org", "node4.example.org")),
]


def rendered(out: Path) -> Path:
    for name, deploy, limit in TREES:
        inventory = f"inventories/{name}.py"
        plan = make_plan(load_inventory(inventory), [f"deploys/{deploy}.py"], limit=limit)
        assert offline_problems(plan, inventory) == []
        assert write_tree(plan, out / name) > 0
    for certificate in [path for name in CERTIFICATES for path in out.rglob(name)]:
        certificate.unlink()
    for manifest in out.rglob("MANIFEST"):
        lines = manifest.read_text().splitlines(keepends=True)
        manifest.write_text("".join(line for line in lines if not line.strip().endswith(CERTIFICATES)))
    return out


def differences(comparison: filecmp.dircmp[str], path: str = "") -> list[str]:
    here = [f"{path}{name}: only in the golden tree" for name in comparison.left_only]
    here += [f"{path}{name}: only in the new tree" for name in comparison.right_only]
    _, differing, errors = filecmp.cmpfiles(comparison.left, comparison.right, comparison.common_files, shallow=False)
    here += [f"{path}{name}: differs" for name in (*differing, *errors)]
    for name, inner in comparison.subdirs.items():
        here += differences(inner, f"{path}{name}/")
    return here


def test_the_examples_render_to_the_golden_trees(
    tmp_path: Path, example_secrets: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    # The reference of the key names its folder, which is another for each run: a link makes it the same.
    link = Path("/tmp/quench-example-secrets")
    link.unlink(missing_ok=True)
    link.symlink_to(example_secrets)
    monkeypatch.setenv("QUENCH_SECRETS", str(link))
    new = rendered(tmp_path / "new")
    found = []
    for name in {name for name, _, _ in TREES}:
        if request.config.getoption("--update"):
            shutil.rmtree(GOLDEN / name, ignore_errors=True)
            shutil.copytree(new / name, GOLDEN / name)
        found += differences(filecmp.dircmp(GOLDEN / name, new / name))
    assert found == [], "read the change with `make update-golden` and `git diff`"


def test_rendering_twice_gives_the_same_bytes(
    tmp_path: Path, example_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    first, second = rendered(tmp_path / "first"), rendered(tmp_path / "second")
    assert differences(filecmp.dircmp(first, second)) == []
    assert (first / "example" / "node1.example.org" / "etc/nginx/nginx.conf").exists()


def test_no_secret_is_rendered(tmp_path: Path, example_secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    monkeypatch.setenv("HF_TOKEN", "hf_canary_0123456789")
    bodies = [path.read_text().splitlines()[1] for path in example_secrets.glob("*.key")]
    assert len(bodies) == 13
    for path in rendered(tmp_path / "new").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert [body for body in [*bodies, "hf_canary"] if body in text] == []
