"""`asysi weights`: tables, resumption, checks and the page, as a person gets them."""

import csv
import json
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from asysi.contract.errors import ConfigError
from asysi.weights.commands import app
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.reporting.plots import dots_by_name, plot
from asysi.weights.reporting.report import WeightsPage, build
from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze, needed_bytes
from asysi.weights.statistics.finished_rows import FinishedRows
from asysi.weights.tables.columns import COLUMNS, NAMES, ORIGINAL
from asysi.weights.tables.export import read_table, write_table

DOCUMENT = (
    "model_path,model_id,revision,param_name,layer_index,block_type,shape,rows,cols,rank,mean,std,var,sparsity,"
    "dtype,created_at"
)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path):
    """A small checkpoint with three layers."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "owner" / "tiny"
    folder.mkdir(parents=True)
    tensors = {"model.embed_tokens.weight": generator.standard_normal((90, 24)).astype("f2")}
    for layer in range(3):
        for block, shape in (
            ("self_attn.q_proj", (24, 24)),
            ("mlp.up_proj", (60, 24)),
            ("mlp.down_proj", (24, 60)),
        ):
            tensors[f"model.layers.{layer}.{block}.weight"] = generator.standard_normal(shape).astype("f4")
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(24, "f4")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


NAMES_OF_TINY = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{block}.weight"
        for layer in range(3)
        for block in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
    ),
)


def sharded(model):
    """Cut the model in two files with an index; return the folder, the second file and its tensors."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"1.safetensors": names[:9], "2.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, model / file)
    index = {name: file for file, part in parts.items() for name in part}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return model / "2.safetensors", names[9:]


def header_of(file):
    """Return a file's header and its bytes behind it."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(file, text, data):
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)


def truncated_shard(model):
    file, _ = sharded(model)
    header, _ = header_of(file)
    last = max(header, key=lambda name: header[name]["data_offsets"][1] if name != "__metadata__" else 0)
    file.write_bytes(file.read_bytes()[:-1])
    return "the rest is missing", [last]


def header_larger_than_the_file(model):
    file, names = sharded(model)
    file.write_bytes((10**6).to_bytes(8, "little") + file.read_bytes()[8:])
    return "its header claims 1,000,000 bytes", names


def overlapping_offsets(model):
    file, _ = sharded(model)
    header, data = header_of(file)
    first, second = sorted(header, key=lambda name: header[name]["data_offsets"])[:2]
    length = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [4, 4 + length]
    with_header(file, json.dumps(header), data)
    return "share the bytes from", [first, second]


def duplicate_names(model):
    file, names = sharded(model)
    header, data = header_of(file)
    text = json.dumps(header)
    with_header(file, f'{text[:-1]}, "{names[0]}": {json.dumps(header[names[0]])}}}', data)
    return "is in the header twice", [names[0]]


def missing_shard(model):
    file, names = sharded(model)
    file.unlink()
    return "the index names it and it is not there", names


def a_path_that_escapes(model):
    file, names = sharded(model)
    file.rename(model.parent / "2.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"2.safetensors"', '"../2.safetensors"'))
    return "leads out of the checkpoint's folder", names


SPOILED = (
    truncated_shard,
    header_larger_than_the_file,
    overlapping_offsets,
    duplicate_names,
    missing_shard,
    a_path_that_escapes,
)
"""Each spoils a model; returns a part of the sentence about it, and the names of what is lost."""


def analysed(model, **options):
    with open_checkpoint(model) as checkpoint:
        return analyze(checkpoint, CheckpointOrigin(str(model), "owner/tiny", "local"), **options)


class TestTable:
    def test_the_documents_columns_come_first(self, model, tmp_path):
        """The CSV begins with exactly the columns of the original design, in its order; ours follow."""
        assert run("analyze", model, "-o", tmp_path / "out").exit_code == 0
        header = (tmp_path / "out" / "params.csv").read_text().splitlines()[0]
        assert header.startswith(DOCUMENT + ",device,framework,code_version,")
        assert header == ",".join(NAMES)
        assert ",".join(NAMES[:ORIGINAL]) == DOCUMENT

    @pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
    def test_every_format_reads_back(self, model, tmp_path, form):
        """Whatever the format, the rows that are read are those that were written, types included."""
        done = run("analyze", model, "-o", tmp_path, "--format", form)
        assert done.exit_code == 0, done.output
        rows = read_table(tmp_path / f"params.{form}")
        again = write_table(rows, tmp_path / "again.jsonl", "jsonl")
        assert read_table(again) == rows
        assert len(rows) == 13
        kinds = {"text": str, "integer": int, "number": float, "boolean": bool}
        for row in rows:
            for column in COLUMNS:
                value = row[column.name]
                assert value is None or isinstance(value, (kinds[column.kind], int)), (column.name, value)

    def test_parquet_types(self, model, tmp_path):
        """Parquet keeps types and says what each column is."""
        run("analyze", model, "-o", tmp_path, "--format", "parquet")
        schema = pq.read_schema(tmp_path / "params.parquet")
        assert [str(schema.field(name).type) for name in ("rank", "mean", "exact", "shape")] == [
            "int64", "double", "bool", "string",
        ]  # fmt: skip
        assert b"not clamped" in schema.field("rank").metadata[b"text"]

    def test_what_is_not_finite_is_missing(self, tmp_path):
        """A tensor of NaNs alone has a row with empty figures, in every format."""
        save_file({"x": np.full((3, 3), np.nan, "f4")}, tmp_path / "m.safetensors")
        for form in ("csv", "jsonl", "parquet"):
            assert run("analyze", tmp_path, "-o", tmp_path / "out", "--format", form).exit_code == 0
            (row,) = read_table(tmp_path / "out" / f"params.{form}")
            assert (row["mean"], row["rank"], row["nans"], row["sparsity"]) == (None, None, 9, 0.0)

    def test_meta(self, model, tmp_path):
        """run_meta.json holds origin, versions, settings with the seed, and the command line."""
        run("analyze", model, "-o", tmp_path, "--seed", 7, "--zero-epsilon", "1e-3", "--model-id", "a/b",
            "--revision", "r1")  # fmt: skip
        meta = json.loads((tmp_path / "run_meta.json").read_text())
        assert (meta["model_id"], meta["revision"], meta["settings"]["seed"]) == ("a/b", "r1", 7)
        assert {
            "python",
            "packages",
            "code_version",
            "created_at",
            "command_line",
            "device",
            "seconds",
        } <= set(meta)
        assert {"numpy", "torch", "transformers"} <= set(meta["packages"])
        assert read_table(tmp_path / "params.csv")[0]["zero_epsilon"] == 1e-3

    def test_meta_says_what_was_read(self, model, tmp_path):
        """run_meta.json says the precision, both revisions, the filter with n of m, and every dependency."""
        run(
            "analyze",
            model,
            "-o",
            tmp_path,
            "--revision",
            "v1",
            "--include",
            "*.weight",
            "--exclude",
            "*layers.1*",
        )
        meta = json.loads((tmp_path / "run_meta.json").read_text())
        rows = read_table(tmp_path / "params.csv")
        assert 0 < len(rows) < meta_parameters(model)
        assert all(
            row["param_name"].endswith(".weight") and "layers.1" not in row["param_name"] for row in rows
        )
        assert meta["filter"]["parameters"] == f"{len(rows)} of {meta_parameters(model)} parameters"
        assert (meta["filter"]["include"], meta["filter"]["exclude"]) == (["*.weight"], ["*layers.1*"])
        assert (meta["requested_revision"], meta["resolved_revision"]) == ("v1", "v1")
        assert sum(one["tensors"] for one in meta["precision"].values()) == len(rows)
        assert sum(one["bytes"] for one in meta["precision"].values()) == sum(row["bytes"] for row in rows)
        assert "pydantic" in meta["dependencies"]

    def test_a_filter_that_leaves_nothing(self, model):
        """Globs that match nothing are bad input, with a name to compare them with."""
        done = run("analyze", model, "-o", model / "out", "--include", "nothing.*")
        assert isinstance(done.exception, ConfigError)
        assert "leave none of" in str(done.exception)


def meta_parameters(model):
    with open_checkpoint(model) as checkpoint:
        return len(checkpoint.tensors)


def test_a_page_of_a_difference_alone(model, tmp_path):
    """A table of compare is enough for a page."""
    run("compare", model, model, "-o", tmp_path)
    done = run("report", tmp_path / "difference.csv")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "tensors compared:" in page
    assert "What changed" in page


def test_the_page_lists_what_only_one_has(model):
    """Added, removed, reshaped and resized tensors are listed; what was zero before leads what changed."""
    with open_checkpoint(model) as checkpoint:
        rows = analyze(checkpoint, CheckpointOrigin("x", "y")).rows
    empty = dict.fromkeys(column.name for column in DIFFERENCE_COLUMNS)
    differences = [
        {**empty, "param_name": f"the.{status}", "status": status, "block_type": "other", "note": status}
        for status in ("added", "removed", "reshaped", "resized")
    ]
    for number, relative in enumerate([0.1, None]):
        changed = {"status": "changed", "delta_norm": 1.0, "norm_a": 0.0, "delta_relative": relative}
        differences.append({**empty, "param_name": f"c{number}", "block_type": "other", **changed})
    page = build(WeightsPage("m", rows, differences=differences)).replace("<wbr>", "")
    for status in ("added", "removed", "reshaped", "resized"):
        assert f"<h3>{status.capitalize()}</h3>" in page
        assert f"the.{status}" in page
    assert page.index(">c1<") < page.index(">c0<")


class TestResume:
    def test_an_unchanged_tensor_is_not_analysed_again(self, model, tmp_path):
        """With the journal only the tensor whose bytes changed is computed; every row is as without it."""
        journal = tmp_path / "j.jsonl"
        first = analysed(model, journal=journal)
        again = analysed(model, journal=journal)
        assert (first.reused, again.reused) == (0, 13)
        assert again.rows == first.rows
        file = model / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert analysed(model, journal=journal).reused == 12

    def test_other_settings_are_other_rows(self, model, tmp_path):
        """A row computed with another threshold is not taken for this one's."""
        journal = tmp_path / "j.jsonl"
        analysed(model, journal=journal)
        done = analysed(model, journal=journal, settings=Settings(zero_epsilon=0.5))
        assert done.reused == 0
        assert {row["zero_epsilon"] for row in done.rows} == {0.5}

    def test_a_torn_line_costs_one_row(self, model, tmp_path):
        """A journal that was cut by a kill keeps all whole lines, and goes on behind the torn one."""
        journal = tmp_path / "j.jsonl"
        analysed(model, journal=journal)
        journal.write_bytes(journal.read_bytes()[:-20])
        assert analysed(model, journal=journal).reused == 12
        assert analysed(model, journal=journal).reused == 13

    def test_killed_on_the_way(self, model, tmp_path):
        """After kill -9 in the middle the rows that were done are there, and the rest is computed."""
        code = (
            "import os, sys\n"
            "from asysi.weights import analyze, open_checkpoint, CheckpointOrigin\n"
            "from pathlib import Path\n"
            "done = []\n"
            "def progress(name, size):\n"
            "    done.append(name)\n"
            "    if len(done) == 5: os.kill(os.getpid(), 9)\n"
            "with open_checkpoint(sys.argv[1]) as c:\n"
            "    origin = CheckpointOrigin('p', 'm')\n"
            "    analyze(c, origin, workers=1, journal=Path(sys.argv[2]), progress=progress)\n"
        )
        journal = tmp_path / "j.jsonl"
        killed = subprocess.run(
            [sys.executable, "-c", code, str(model), str(journal)], check=False, timeout=120
        )
        assert killed.returncode == -9
        done = analysed(model, journal=journal)
        assert done.reused >= 5
        assert len(done.rows) == 13

    def test_foreign_lines_are_passed_over(self, tmp_path):
        """Lines that are not rows of this version are nobody's rows."""
        path = tmp_path / "j.jsonl"
        path.write_text('3\n{"settings": "k"}\n{"settings": "k", "row": {"param_name": "x"}}\nrubbish\n')
        assert not FinishedRows(path, "k")._rows


class TestMemory:
    def test_big_tensors_are_not_held_together(self, tmp_path):
        """With memory for one, tensors that need much are analysed one after the other."""
        save_file({f"x{n}": np.ones((300, 300), "f4") for n in range(4)}, tmp_path / "m.safetensors")
        most, now, lock = 0, 0, threading.Lock()
        with open_checkpoint(tmp_path) as checkpoint:
            need = needed_bytes(checkpoint.tensors["x0"], Settings())
            for tensor in checkpoint.tensors.values():
                plain = tensor._read

                def read(start, stop, into, plain=plain):
                    nonlocal most, now
                    with lock:
                        now += 1
                        most = max(most, now)
                    try:
                        return plain(start, stop, into)
                    finally:
                        with lock:
                            now -= 1

                object.__setattr__(tensor, "_read", read)
            done = analyze(checkpoint, CheckpointOrigin("p", "m"), workers=4, memory=int(1.5 * need))
        assert len(done.rows) == 4
        assert most == 1


class TestCommands:
    @pytest.mark.parametrize("defect", SPOILED, ids=lambda spoil: spoil.__name__)
    def test_what_is_lost_is_listed_and_the_rest_is_analysed(self, model, tmp_path, defect):
        """Each defect has its sentence on stderr and in run_meta.json, with the names of what is lost; all
        other tensors are in the table; the exit code is 1.
        """
        said, lost = defect(model)
        done = run("analyze", model, "-o", tmp_path / "out")
        assert done.exit_code == 1, done.output
        rows = read_table(tmp_path / "out" / "params.csv")
        assert {row["param_name"] for row in rows} == set(NAMES_OF_TINY) - set(lost)
        problems = json.loads((tmp_path / "out" / "run_meta.json").read_text())["problems"]
        for text in (done.stderr, "\n".join(problems)):
            assert said in text
            assert all(name in text for name in lost)

    def test_nothing_readable_is_bad_input(self, tmp_path):
        """A checkpoint of which nothing can be read is bad input: exit code 2."""
        (tmp_path / "m.safetensors").write_bytes(b"123")
        done = run("analyze", tmp_path, "-o", tmp_path / "out")
        assert isinstance(done.exception, ConfigError)
        code = subprocess.run(
            [sys.executable, "-m", "asysi.cli", "weights", "analyze", ".", "-o", "out"], cwd=tmp_path,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert code.returncode == 2
        assert "too few for a safetensors file" in code.stderr

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--zero-epsilon", "-1"], "--zero-epsilon -1.0 is not a valid size"),
            (["--zero-epsilon", "nan"], "--zero-epsilon nan is not a valid size"),
            (["--rank-k", "0"], "--rank-k 0"),
        ],
    )
    def test_bad_options(self, model, arguments, said):
        """A setting that cannot be is refused by name."""
        done = run("analyze", model, *arguments)
        assert isinstance(done.exception, ConfigError)
        assert said in str(done.exception)

    def test_compare(self, model, tmp_path):
        """compare writes a table, and says how many changed."""
        done = run("compare", model, model, "-o", tmp_path)
        assert done.exit_code == 0, done.output
        assert "13 same" in done.output
        with (tmp_path / "difference.csv").open() as stream:
            assert {row["status"] for row in csv.DictReader(stream)} == {"same"}

    def test_report(self, model, tmp_path):
        """report makes a page from a table and a difference."""
        run("analyze", model, "-o", tmp_path)
        run("compare", model, model, "-o", tmp_path / "d")
        done = run("report", tmp_path / "params.csv", "--difference", tmp_path / "d" / "difference.csv")
        assert done.exit_code == 0, done.output
        page = (tmp_path / "report.html").read_text().replace("<wbr>", "")
        for word in (
            "What changed",
            "Layer by layer",
            "Spectra",
            "model.layers.2.mlp.down_proj.weight",
            "<svg",
        ):
            assert word in page

    @pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
    def test_report_of_no_table(self, tmp_path, text):
        """A file that is not a table is refused."""
        (tmp_path / "params.csv").write_text(text)
        done = run("report", tmp_path / "params.csv")
        assert isinstance(done.exception, ConfigError)


class TestOrchestrator:
    def test_run_does_everything_and_says_so(self, model, tmp_path):
        """run writes its plan, does every step, checks the export against numpy, leaves page and table."""
        out = tmp_path / "out"
        done = run("run", model, "-o", out, "--format", "parquet")
        assert done.exit_code == 0, done.output
        plan = json.loads((out / "plan.json").read_text())
        assert [(step["name"], step["state"]) for step in plan["steps"]] == [
            ("download", "skipped"), ("read", "done"), ("analyze", "done"), ("export", "done"),
            ("check", "done"),
        ]  # fmt: skip
        assert {"goal", "inputs", "outputs", "fallbacks"} <= set(plan)
        check = json.loads((out / "check.json").read_text())
        assert (check["rows"], check["columns"], check["failures"]) == (13, len(COLUMNS), [])
        assert len(check["spot_checks"]) == 5
        assert max(error for spot in check["spot_checks"] for error in spot["errors"].values()) < 1e-9
        assert all((out / file).stat().st_size for file in ("params.parquet", "run_meta.json", "report.html"))

    def test_run_again_skips_what_is_verified(self, model, tmp_path):
        """The second run analyses nothing; the plan says why."""
        run("run", model, "-o", tmp_path / "out")
        run("run", model, "-o", tmp_path / "out")
        plan = json.loads((tmp_path / "out" / "plan.json").read_text())
        (step,) = [step for step in plan["steps"] if step["name"] == "analyze"]
        assert (step["state"], step["note"]) == ("skipped", "0 analysed, 13 unchanged since the last run")

    def test_a_false_row_fails_the_check(self, model, tmp_path, monkeypatch):
        """An export that disagrees with numpy, or lacks a row, fails with the reason and exit code 1."""
        from asysi.weights.run import orchestrator

        def spoilt(rows, file, form):
            return write_table([{**row, "mean": 1e3} for row in rows[1:]], file, form)

        monkeypatch.setattr(orchestrator, "write_table", spoilt)
        done = run("run", model, "-o", tmp_path / "out")
        assert done.exit_code == 1
        assert "the table has 12 rows, 13 tensors were to be analysed" in done.output
        assert "numpy says" in done.output

    def test_a_model_that_cannot_be_had_is_in_the_plan(self, tmp_path):
        """The step that failed is in the plan with its reason."""
        done = run("run", "owner/none", "-o", tmp_path / "out", "--models", tmp_path / "m", "--offline")
        assert isinstance(done.exception, ConfigError)
        plan = json.loads((tmp_path / "out" / "plan.json").read_text())
        assert (plan["steps"][0]["state"], plan["steps"][1]["state"]) == ("failed", "planned")
        assert "offline nothing is fetched" in plan["steps"][0]["note"]


class TestPage:
    def test_names_cannot_break_out(self, model):
        """Whatever a checkpoint calls its tensors is text on the page."""
        rows = [{**row, "param_name": "</title><script>alert(1)</script>"} for row in analysed(model).rows]
        page = build(WeightsPage("<b>m</b>", rows, ["<i>"], {"model_id": "<u>"}))
        for tag in ("<script", "<b>m", "<i>", "<u>"):
            assert tag not in page

    def test_the_page_is_alone(self, model):
        """The page loads nothing and runs nothing."""
        page = build(WeightsPage("m", analysed(model).rows))
        assert "default-src 'none'" in page
        assert "src=" not in page.replace("default-src=", "")

    def test_a_page_of_nothing_but_vectors(self, tmp_path):
        """Without a single matrix there is a page that says so."""
        save_file({"x": np.ones(3, "f4")}, tmp_path / "m.safetensors")
        page = build(WeightsPage("m", analysed(tmp_path).rows))
        assert "No singular values were computed" in page
        assert "No matrix has a layer" in page


def test_a_page_of_one_layer(model):
    """Of one layer the block types stand below each other, each with its value, rather than on one spot."""
    with open_checkpoint(model) as checkpoint:
        rows = [
            row
            for row in analyze(checkpoint, CheckpointOrigin("x", "y")).rows
            if row["layer_index"] in {None, 1}
        ]
    page = build(WeightsPage("m", rows))
    assert "The layer" in page
    assert "Layer by layer" not in page
    figure = page.partition("<b>Standard deviation</b>")[2].partition("</figure>")[0]
    blocks = ("q_proj", "up_proj", "down_proj")
    for block in blocks:
        assert f">{block}</text>" in figure
        assert f"<title>{block}: " in figure
    heights = {dot.partition('"')[0] for dot in figure.split('cy="')[1:]}
    assert len(heights) == len(blocks)
    assert "<path" not in figure
    assert 'class="key' not in page
    assert "model.<wbr>layers.<wbr>1.<wbr>mlp." in page
    assert ">note</th>" not in page
    assert "Layer by layer" in build(WeightsPage("m", [*rows, {**rows[1], "layer_index": 2}]))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_an_axis_of_one_value_stays_positive(value):
    """Shares that are all the same are drawn on an axis that does not go below zero."""
    drawn = plot("t", "", {"a": [(0.0, value), (1.0, value)]}, shades={})
    assert not any(label.startswith(("-", "−")) for _, label in drawn.up)
    named = dots_by_name("t", "", {"a": value, "b": float("nan")}, shades={})
    assert [line.name for line in named.lines] == ["a"]
    assert dots_by_name("t", "", {"b": float("inf")}, shades={}) is None
