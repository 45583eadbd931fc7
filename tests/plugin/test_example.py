"""examples/cluster: a first experiment that any small cluster can run as it stands."""

from pathlib import Path

import yaml

from asysi.contract.quantity import parse_bytes
from asysi_operator.acceptance import validate
from asysi_operator.manifests import build

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "examples/cluster/README.md", "docs/cluster.md"),
    "charts/asysi/templates/NOTES.txt",
)
EXPERIMENT = validate(yaml.safe_load((ROOT / "examples/cluster/scan.yaml").read_text()))


def _cpus(quantity: str) -> float:
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def test_it_fits_two_processors():
    """Its pod leaves room on a node of two CPUs and 8 GiB for the system and the operator."""
    job = build(EXPERIMENT)[-1]["spec"]["template"]["spec"]
    sidecars = [one for one in job["initContainers"] if one.get("restartPolicy") == "Always"]
    limits = [one["resources"]["limits"] for one in (*sidecars, *job["containers"])]
    assert sum(_cpus(one["cpu"]) for one in limits) <= 1.5
    assert sum(parse_bytes(one["memory"]) for one in limits) <= 4 * 2**30
    assert sum(parse_bytes(one["ephemeral-storage"]) for one in limits) <= 12 * 2**30


def test_it_reads_only_what_the_image_holds():
    """No claim of the user's, no address on the network: the paths are those that the Dockerfile fills."""
    spec = EXPERIMENT.spec
    assert spec.inputs == []
    assert spec.output.claim is None
    docker = (ROOT / "docker/Dockerfile").read_text()
    folder = "/usr/share/asysi/example"
    assert f"COPY --from=example /example {folder}\n" in docker
    assert spec.data is not None
    assert spec.model.uri == f"file://{folder}/model"
    assert spec.data.uri == f"jsonl://{folder}/topics.jsonl"


def test_readme_page_and_notes_give_the_same_commands():
    """From an installed chart to the report it takes three commands, the same wherever they stand."""
    commands = (
        "kubectl apply -f examples/cluster/scan.yaml",
        "kubectl wait --for=condition=Complete scanx/first --timeout=15m",
        "asysi cluster report first",
    )
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert all(command in text for command in commands), page
    assert EXPERIMENT.metadata.name == "first"
