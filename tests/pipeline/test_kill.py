"""A pipeline that is killed goes on to the very output that it would have had."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("ASYSI_PIPELINE_KILLS", "52"))
"""Kills over all modes; `make kill-pipeline` takes 1,000."""


@pytest.mark.parametrize("mode", ["sequential", "streaming", "parallel", "memory"])
@pytest.mark.timeout(60 + 10 * KILLS)
def test_resumed_output_is_byte_identical(tmp_path: Path, mode: str) -> None:
    """However often kill -9 ends a run with 1:N nodes, the resumed output is that of a run without."""
    kills = max(1, KILLS // 4)
    found = killed(tmp_path, mode, kills)
    assert found["kills"] == kills
    assert (found["wrong"], found["failed"]) == (0, 0), found["said"]


def test_a_ledger_that_runs_ahead_of_its_rows_is_noticed(tmp_path: Path) -> None:
    """The loop above can fail: with the order of rows and ledger reversed, it does."""
    found = killed(tmp_path, "ahead", 24)
    assert found["wrong"] > 0
    assert "was cut: node" in found["said"]


def killed(folder: Path, mode: str, kills: int) -> dict[str, Any]:
    """Run the loop and return what it counted."""
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), mode, str(kills), "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "said": done.stderr}
