"""A pipeline that is killed goes on to the very output that it would have had."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("ASYSI_PIPELINE_KILLS", "24"))
"""Kills over all modes; `make kill-pipeline` takes 1,000."""


@pytest.mark.parametrize("mode", ["sequential", "streaming", "parallel", "memory"])
@pytest.mark.timeout(60 + 10 * KILLS)
def test_resumed_output_is_byte_identical(tmp_path: Path, mode: str) -> None:
    """However often kill -9 ends a run with 1:N nodes, the resumed output is that of a run without."""
    script = Path(__file__).with_name("pipeline_killing.py")
    kills = max(1, KILLS // 4)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), mode, str(kills), "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert (found["wrong"], found["failed"]) == (0, 0), done.stderr
