"""Hold the rendered chart and an experiment's objects against checkov's rules for Kubernetes.

python charts/audit.py --checkov .venv-audit/bin/checkov

What fails is either mended or stands with its reason in docs/security.md, in the table under "Audits". Exit
code 1 when a failure is not in the table, or when the table lists what does not fail any more.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "asysi"
PAGE = ROOT / "docs" / "security.md"
_ROW = re.compile(r"\| `(CKV2?_K8S_\d+)`[^|]*\| ([A-Za-z`, ]+) \|")


def rendered(folder: Path) -> None:
    """Render every set of values in ci/, without the CRD, and the objects of an experiment."""
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        command = ["helm", "template", "asysi", str(CHART), "--namespace", "asysi", "--values", str(values)]
        text = _output([*command, "--set", "crds.enabled=false"])
        (folder / values.name).write_text(text)
    experiment = ROOT / "examples" / "cluster" / "scan.yaml"
    command = [sys.executable, "-m", "asysi.cli", "render", str(experiment)]
    (folder / "experiment.yaml").write_text(_output(command))


def failures(checkov: str, folder: Path) -> dict[tuple[str, str], str]:
    """Return what fails, by check and kind of object, with the check's name."""
    command = [
        checkov,
        "--directory",
        str(folder),
        "--framework",
        "kubernetes",
        "--output",
        "json",
        "--quiet",
    ]
    done = subprocess.run([*command, "--soft-fail"], capture_output=True, text=True, check=True)  # noqa: S603
    report = json.loads(done.stdout)
    if not report.get("summary", {}).get("passed"):
        raise SystemExit(f"checkov has looked at nothing:\n{done.stdout[:2000]}")
    failed = report["results"]["failed_checks"]
    return {(one["check_id"], one["resource"].split(".")[0]): one["check_name"] for one in failed}


def accepted(page: str) -> set[tuple[str, str]]:
    """Return what the page gives a reason for, by check and kind of object."""
    rows = _ROW.findall(page.split("\n## Audits\n")[1])
    return {(check, kind) for check, kinds in rows for kind in re.findall(r"[A-Za-z]+", kinds)}


def main() -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkov", default="checkov", help="the program")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rendered(Path(folder))
        found = failures(chosen.checkov, Path(folder))
    known = accepted(PAGE.read_text())
    for check, kind in sorted(found.keys() - known):
        print(f"{check} fails for {kind}, and docs/security.md gives no reason: {found[check, kind]}")
    for check, kind in sorted(known - found.keys()):
        print(f"{check} does not fail for {kind} any more: take it out of docs/security.md")
    print(f"{len(found)} kinds of failures, {len(found.keys() & known)} of them with a reason")
    return 1 if found.keys() ^ known else 0


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
