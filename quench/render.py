"""The tree that an auditor reads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from quench.plan import HostPlan, Plan


def write_tree(plan: Plan, out: Path) -> int:
    """Write `OUT/HOST/<path on the host>` for each file, with MANIFEST and OPERATIONS beside them.

    Secrets stand as their references. A former tree of the same hosts is replaced.

    Returns:
        The number of managed files written.
    """
    for host_plan in plan.values():
        folder = out / host_plan.host
        shutil.rmtree(folder, ignore_errors=True)
        for file in host_plan.files:
            path = folder / file.dest.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.content)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "MANIFEST").write_text(manifest(host_plan))
        (folder / "OPERATIONS").write_text("".join(f"{name}\n" for name in host_plan.operations))
    return sum(len(host_plan.files) for host_plan in plan.values())


def manifest(host_plan: HostPlan) -> str:
    """A line for each file and folder: SHA-256, mode, owner, group, path; sorted by path.

    The hash is that of the rendered text, so for a file with a secret it is that of the reference.
    """
    rows = [
        (file.dest, hashlib.sha256(file.content.encode()).hexdigest(), file.mode, file.owner, file.group)
        for file in host_plan.files
    ]
    rows += [(item.dest, "-" * 64, item.mode, item.owner, item.group) for item in host_plan.directories]
    lines = [f"{digest} {mode:04o} {owner} {group} {dest}\n" for dest, digest, mode, owner, group in sorted(rows)]
    return "".join(lines)
