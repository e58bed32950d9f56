"""The reference pages say what the models say."""

from __future__ import annotations

from pathlib import Path

from quench.reference import write_reference

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


def test_the_reference_is_what_the_models_say(tmp_path: Path) -> None:
    names = [path.name for path in write_reference(tmp_path)]
    assert sorted(path.name for path in REFERENCE.iterdir()) == sorted(names)
    stale = [name for name in names if (tmp_path / name).read_text() != (REFERENCE / name).read_text()]
    assert stale == [], "run `quench reference`"
