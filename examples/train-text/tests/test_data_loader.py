"""The data set keeps the contract, and says so in CONTRACTS.md."""

import inspect
import re
from pathlib import Path

from train.data_loader import CustomDataset

from asysi.train.batches import BatchContract
from asysi.train.data_loader import BatchLoader
from asysi.train.project import Project


def test_the_signature_is_that_of_the_specification() -> None:
    """A data set takes these parameters by keyword."""
    wanted = ["self", "root", "processor_config", "augmentation_config", "train", "debug"]
    assert list(inspect.signature(CustomDataset.__init__).parameters)[:6] == wanted


def test_a_batch_keeps_the_contract(project: Project) -> None:
    """Every batch of the validation table has the names, types, shapes and ranges of the contract."""
    loader = BatchLoader(project.dataset("val"), BatchContract(project.config.contract), 64)
    seen = sum(len(batch["labels"]) for _, batch in loader.batches(0))
    assert seen == len(loader.dataset)


def test_a_training_sample_keeps_the_contract(project: Project) -> None:
    """Augmentation changes a sample from epoch to epoch, never its contract, and the same way each time."""
    dataset = project.dataset("train", train=True)
    loader = BatchLoader(dataset, BatchContract(project.config.contract), 32, seed=1)
    _, first = next(loader.batches(3))
    _, again = next(loader.batches(3))
    assert all(first[name].equal(again[name]) for name in first)


def test_the_page_agrees_with_the_configuration(project: Project) -> None:
    """CONTRACTS.md lists the tensors of `config.yaml` with their types and sizes."""
    page = (Path(__file__).parents[1] / "CONTRACTS.md").read_text()
    row = r"^\| `(\w+)` \| (\w+) \| \[batch(?:, )?([^\]]*)\] \| (-?\d+) to (-?\d+) \|"
    rows = re.findall(row, page, re.M)
    stated = {
        name: (dtype, [int(size) for size in shape.split(",") if size.strip()], [float(low), float(high)])
        for name, dtype, shape, low, high in rows
    }
    contract = project.config.contract
    assert stated == {name: (one.dtype, list(one.shape), one.range) for name, one in contract.items()}
