"""Scan a model over a data set, sample by sample, and write METRICS records of activations and gradients.

    python batch_scanner.py --model file://./model --data jsonl://./text.jsonl --output scan.mscan

Each sample is one forward pass and, with a loss, one backward pass. What `ScannerEngine` collects is made
into rows, quantised, measured, and appended to an `.mscan` file (docs/mscan.md). To read it, use
`asysi mscan info scan.mscan` and `asysi mscan export parquet scan.mscan -o FOLDER`.

Activations: one record per token and module, of the values that a reader of the quantised rows would get.
Gradients: one record per parameter, never quantised. Tokens that `data.tokens.excludeTokens` leaves out by
default (special tokens) have no record; modules that return no row per token are counted and left out.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asysi import ScannerEngine
from asysi.archive.measure import measure_parameter_gradient, measure_values
from asysi.archive.writer import MScanWriter
from asysi.bus.packet import Quantization
from asysi.bus.quantization import round_trip
from asysi.capture.rows import row_shape
from asysi.contract.errors import ConfigError
from asysi.contract.spec import Data, Holdout, Model, Scan, Tokens
from asysi.model.globs import split_call
from asysi.model.loading import LoadedModel, load_callable, load_model, resolve_model
from asysi.text.reading import read_data
from asysi.text.tokens import Batch

QUANTIZATIONS = {
    "none": Quantization.NONE,
    "bf16": Quantization.BF16,
    "fp8": Quantization.FP8,
    "int8": Quantization.INT8,
}
"""Choices of --quantization. int8 has a scale per row: a table per channel needs thousands of rows first."""

Loss = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
"""Takes the model and token ids [1, length]; returns a scalar."""


@dataclass
class Counts:
    """What a scan wrote and left out."""

    samples: int = 0
    activations: int = 0
    """METRICS records of activations."""
    gradients: int = 0
    """METRICS records of gradients."""
    points: set[str] = field(default_factory=set)
    """Hook points with a record."""
    parameters: set[str] = field(default_factory=set)
    """Parameters with a record."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Calls whose output has no row per token, by hook point."""


def lm_loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each next token, in float32."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def module_loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the model's own loss with the input as labels; an encoder-decoder shifts them itself."""
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def find_loss(name: str) -> Loss | None:
    """Return the loss that --loss names; None runs forward only."""
    if name.startswith("python://"):
        function: Loss = load_callable(name.removeprefix("python://"), "--loss")
        return function
    known: dict[str, Loss | None] = {"none": None, "lm": lm_loss, "module": module_loss}
    if name not in known:
        raise ConfigError(f"--loss is {name!r}: none, lm, module or python://package.module:function")
    return known[name]


def run_sample(scanner: ScannerEngine, model: torch.nn.Module, ids: torch.Tensor, loss: Loss | None) -> None:
    """Run the model on one sample, forward and, with a loss, backward, while the scanner collects."""
    with scanner:
        if loss is None:
            with torch.no_grad():
                model(input_ids=ids)
            return
        model.zero_grad(set_to_none=True)
        loss(model, ids).backward()


def to_rows(tensor: torch.Tensor, batch: Batch) -> NDArray[np.float32] | None:
    """Return an activation's content tokens as rows [tokens, width]; None if it has no row per token."""
    sequences, length = batch.ids.shape
    shape = row_shape(tensor.shape, sequences, length)
    if shape is None or not tensor.is_floating_point():
        return None
    rows: NDArray[np.float32] = tensor.float().reshape(sequences * length, prod(shape)).numpy()
    return rows[batch.tokens.content]


def append_sample(
    writer: MScanWriter, scanner: ScannerEngine, batch: Batch, quantization: Quantization, counts: Counts
) -> None:
    """Append the records of one sample: process, quantise, measure, append."""
    activations, gradients = scanner.get_collected_data()
    tokens = batch.tokens.rows[batch.tokens.content]
    for name, tensor in activations.items():
        point, call = split_call(name)
        rows = to_rows(tensor, batch)
        if rows is None:
            counts.left_out[point] += 1
            continue
        read = round_trip(rows, quantization)
        records = measure_values(read, tokens, step=batch.number, call_index=call or 0)
        writer.append_records(records, {"point": point, "width": rows.shape[1]})
        counts.activations += len(records)
        counts.points.add(point)
    sample, flags = int(batch.tokens.rows["sample"][0]), int(batch.tokens.rows["flags"][0])
    for name, tensor in gradients.items():
        values = tensor.to_dense().float().numpy()
        record = measure_parameter_gradient(values, sample=sample, step=batch.number, flags=flags)
        writer.append_records(record, {"point": name, "width": values.size})
        counts.gradients += 1
        counts.parameters.add(name)
    counts.samples += 1


def batches_of(arguments: argparse.Namespace, tokenizer: Any) -> Iterator[Batch]:
    """Yield the samples in the order of the data, one a batch."""
    data = Data(
        uri=arguments.data,
        tokens=Tokens(
            context_length=arguments.context_length, text_field=arguments.text_field, packing="none"
        ),
        holdout=Holdout(share=0),
    )
    return read_data(data, Scan(batch_size=1, max_samples=arguments.samples), tokenizer).batches.from_step(0)


def scan(arguments: argparse.Namespace, counts: Counts) -> None:
    """Scan the data as the arguments say; `counts` is filled in on the way."""
    loss = find_loss(arguments.loss)
    resolved = resolve_model(Model(uri=arguments.model))
    loaded: LoadedModel = load_model(resolved, "float32")
    model = loaded.module.to(arguments.device)
    scanner = ScannerEngine(
        model, hook_points=arguments.hook_points, parameters=[] if loss is None else arguments.parameters
    )
    quantization = QUANTIZATIONS[arguments.quantization]
    metadata = {
        "experiment": "batch_scanner",
        "model": {"uri": arguments.model, "sha256": resolved.sha256},
        "data": arguments.data,
        "loss": arguments.loss,
        "quantization": {"activations": quantization.name.lower(), "gradients": "none"},
    }
    with MScanWriter(arguments.output, metadata) as writer:
        for batch in batches_of(arguments, loaded.tokenizer):
            ids = torch.from_numpy(batch.ids).to(arguments.device)
            run_sample(scanner, model, ids, loss)
            append_sample(writer, scanner, batch, quantization, counts)


def parse(words: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="URI", help="hf://owner/name, file://folder, file://model.gguf or "
        "python://package.module:factory")  # fmt: skip
    add("--data", required=True, metavar="URI", help="rows of text, such as jsonl://./text.jsonl")
    add("--output", required=True, type=Path, metavar="FILE", help="the new .mscan file")
    add("--device", default="cpu", help="where the model runs: cpu or cuda (default: %(default)s)")
    add("--samples", type=int, metavar="N", help="distinct documents to read (default: all)")
    add("--hook-points", nargs="+", metavar="GLOB", help="modules, such as 'encoder.layer.*' (default: every "
        "named module)")  # fmt: skip
    add("--parameters", nargs="+", metavar="GLOB", help="parameters whose gradients are scanned (default: "
        "every one that requires a gradient)")  # fmt: skip
    add("--loss", default="none", help="none (forward only), lm, module (the model's own) or "
        "python://package.module:function of model and token ids (default: %(default)s)")  # fmt: skip
    add("--quantization", default="none", choices=QUANTIZATIONS, help="of activations (default: %(default)s)")
    add(
        "--context-length",
        type=int,
        default=128,
        metavar="N",
        help="tokens of a sample (default: %(default)s)",
    )
    add("--text-field", default="text", metavar="NAME", help="field of a row with its text (default: text)")
    arguments = parser.parse_args(words)
    if arguments.parameters and arguments.loss == "none":
        parser.error("--parameters asks for gradients, and --loss none computes none: choose a loss")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the scanner; returns the exit code: 0, or 2 for a mistake in the arguments."""
    arguments, counts = parse(words), Counts()
    try:
        scan(arguments, counts)
    except BaseException as error:
        if counts.samples:
            print(f"Scan incomplete after {counts.samples} samples", file=sys.stderr)
        if not isinstance(error, ConfigError | FileExistsError | ValueError):
            raise
        print(error, file=sys.stderr)
        return 2
    print(
        f"Scan complete: {counts.samples} samples, {counts.activations} records of activations at "
        f"{len(counts.points)} hook points, {counts.gradients} records of gradients of "
        f"{len(counts.parameters)} parameters"
    )
    if counts.left_out:
        names = ", ".join(sorted(counts.left_out)[:5])
        print(f"Left out, no row per token: {len(counts.left_out)} hook points, such as {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
