"""Hostile uploads: no code runs, nothing is written outside, nothing crashes."""

import pickle
from pathlib import Path

import pytest

from lab.security.studio_uploads import bombs, upload_all


@pytest.mark.long
def test_hostile_uploads_are_refused(tmp_path: Path) -> None:
    counts = upload_all(tmp_path, models=45, images=8)
    assert counts["crashes"] == counts["code run"] == counts["files outside"] == 0
    assert counts["inspection failed"] > 30
    assert counts["oversize 413"] == 1
    assert {key for key in counts if key.startswith("image upload")} <= {
        "image upload 201",
        "image upload 400",
    }


def test_control_the_bombs_do_run_code_where_pickle_loads_them(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = next(data for name, data in bombs(canary) if name == "builtins.eval as as_magic")
    pickle.loads(content)
    assert canary.exists()
