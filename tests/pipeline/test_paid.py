"""No paid call is repeated, however often the run that pays is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("ASYSI_PIPELINE_KILLS", "20"))
"""Kills over both kinds of server; `make kill-pipeline` takes more."""


@pytest.mark.parametrize("server", ["idempotent", "plain"])
@pytest.mark.timeout(60 + 10 * KILLS)
def test_no_answer_that_arrived_is_paid_for_again(tmp_path: Path, server: str) -> None:
    """Over kill -9 the output stays the same bytes, each row's call is booked once, and no call is
    charged twice: where the server knows idempotency keys none at all, else none but those that were on their
    way, unanswered, when a run was killed, and those were as many as go at once at most.
    """
    script = Path(__file__).with_name("paying.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), server, str(max(1, KILLS // 2)), "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == max(1, KILLS // 2)
    for fault in ("wrong", "failed", "beyond", "unpaid", "misbooked", "crowded"):
        assert found[fault] == 0, (found, done.stderr)
    if server == "idempotent":
        assert found["twice"] == 0
