"""A real language model from check to report, with and without BOS: the page says at once what is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
SMALL = """
spec:
  data: {tokens: {contextLength: 96}}
  workload: {scan: {passes: 2, maxSamples: 150}}
  finish: {spliceTokens: 3000}
  sae: {train: [{name: topk, latents: 256, k: 16, batch: 256, buffer: {batches: 4, sequences: 50}}]}
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("smollm2")
@pytest.mark.parametrize("bos", [False, True], ids=["without", "with"])
def test_the_example(tmp_path, bos):
    """Without BOS a warning names position 0 with the FVU that it hides; with BOS nothing is wrong. Trainer
    and report agree on the same rows, logits and loss are on the page.
    """
    subprocess.run([sys.executable, EXAMPLE / "corpus.py"], check=True, timeout=120)
    (tmp_path / "small.yaml").write_text(SMALL)
    files = [EXAMPLE / "scan.yaml", *([EXAMPLE / "bos.yaml"] if bos else []), tmp_path / "small.yaml"]
    named = [part for file in files for part in ("-f", str(file))]
    command = [sys.executable, "-m", "asysi.cli", "run", *named, "--output", str(tmp_path / "out"), "--plain"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=1500,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "verdict.json").read_text())
    (point,) = found["points"]
    (sae,) = point["saes"]
    assert abs(sae["compared"]["trainer"] - sae["compared"]["report"]) < 0.001
    page = (tmp_path / "out" / "report.html").read_text()
    assert "recovered" in page
    assert '"logits":{' in page
    if bos:
        assert found["level"] == "ok", found["findings"]
        assert done.stdout.startswith("✓ smollm2-bos finished")
        assert sae["fvu"] > 0.1
    else:
        assert [one["reason"] for one in found["findings"]] == ["OutlierShare"]
        assert point["outlier"]["name"] == "position 0"
        assert point["outlier"]["share"] > 0.9
        assert sae["fvu"] < 0.01
        assert sae["fvuWithoutOutlier"] > 0.1
        assert done.stdout.startswith("! smollm2 finished")
        assert 'class="verdict warning"' in page
        assert "without position 0" in page.split("</section>")[0]
