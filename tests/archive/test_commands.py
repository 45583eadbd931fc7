"""`asysi mscan`: what a person sees of an archive, and what they can turn it into."""

import json

import numpy as np
import pytest
from pyarrow import ipc
from pyarrow import parquet as pq
from safetensors.numpy import load_file
from tests.packets import packet_of, rows_of
from typer.testing import CliRunner

from asysi.archive.commands import app
from asysi.archive.dataset import MScanDataset
from asysi.archive.export import export, file_name
from asysi.archive.format import METRICS_DTYPE, ChunkKind
from asysi.archive.segment import open_segment
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.bus.packet import RowFlag
from asysi.contract.errors import ConfigError

POINTS = ["encoder.layer.0", "encoder.layer.1"]
WIDTH = 6


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def archive(tmp_path):
    """An output folder with one segment: 8 steps of 5 float16 rows at two hook points, small chunks."""
    folder = tmp_path / "output" / "archive"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with MScanWriter(folder / "attempt-0000-segment-0000.mscan", {}, chunk_bytes=700) as writer:
        for step in range(8):
            for point in POINTS:
                payload = generator.standard_normal((5, WIDTH)).astype("<f2")
                samples = np.arange(5) + 100 * step
                rows = rows_of(5, sample=samples, flags=[RowFlag.HOLDOUT, 0, 0, 0, 0])
                records = np.zeros(5, METRICS_DTYPE)
                records["sample"], records["step"], records["l2"] = rows["sample"], step, rows["sample"]
                writer.append_records(records, SeqInfo(point, 0, step, step, WIDTH))
                writer.append_tensor(packet_of(payload, step, point, rows=rows))
    return tmp_path / "output"


def segment_of(archive):
    return archive / "archive" / "attempt-0000-segment-0000.mscan"


def read(path):
    """Columns of an exported file, whatever its format."""
    match path.suffix:
        case ".safetensors":
            return load_file(path)
        case ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        case ".parquet":
            table = pq.read_table(path)
        case _:
            with ipc.open_file(path) as file:
                table = file.read_all()
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    assert table.schema.metadata[b"hook_point"].decode() in POINTS
    return columns


@pytest.mark.parametrize("output_format", ["parquet", "arrow", "safetensors", "npz"])
class TestExport:
    def test_tensors(self, archive, tmp_path, output_format):
        """Every row is exported, in order, with its lineage, equal to what the archive holds."""
        done = run("export", output_format, archive, "-o", tmp_path / "out", "--content", "tensors")
        assert done.exit_code == 0, done.output
        dataset = MScanDataset(archive)
        for point in POINTS:
            columns = read(tmp_path / "out" / f"{point}.tensors.{output_format}")
            rows = np.concatenate([p.rows for p in dataset.packets(point)])
            np.testing.assert_array_equal(columns["activation"], np.concatenate(list(dataset.tensors(point))))
            np.testing.assert_array_equal(columns["sample"], rows["sample"])
            np.testing.assert_array_equal(columns["step"], np.repeat(np.arange(8), 5))
            np.testing.assert_array_equal(columns["holdout"], rows["flags"] == RowFlag.HOLDOUT)

    def test_metrics(self, archive, tmp_path, output_format):
        """Metrics are exported column by column; points, steps and samples choose."""
        done = run(
            "export", output_format, archive, "-o", tmp_path / "out", "--points", "*.*.1",
            "--steps", "2:5", "--samples", "300:",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        [path] = (tmp_path / "out").iterdir()
        assert path.name == f"encoder.layer.1.metrics.{output_format}"
        columns = read(path)
        assert columns["sample"].tolist() == [300, 301, 302, 303, 304, 400, 401, 402, 403, 404]
        assert columns["l2"].tolist() == columns["sample"].tolist()
        assert set(METRICS_DTYPE.names) - {"hook_point", "flags"} < set(columns)

    def test_damage_leaves_nothing(self, archive, tmp_path, output_format):
        """A damaged chunk ends the export with its file and offset, and no half file is left."""
        path = segment_of(archive)
        data = bytearray(path.read_bytes())
        tensors = [e for e in open_segment(path).entries if e["kind"] == ChunkKind.TENSOR]
        data[int(tensors[-1]["offset"]) + 200] ^= 1
        path.write_bytes(data)
        out = tmp_path / "out"
        done = run("export", output_format, archive, "-o", out, "--content", "tensors")
        assert done.exit_code == 1
        assert f"{path} at byte {int(tensors[-1]['offset']) + 192}" in done.output
        assert [p.name for p in out.iterdir()] == [f"encoder.layer.0.tensors.{output_format}"]

    def test_float16(self, archive, tmp_path, output_format):
        """Activations can be exported as float16."""
        dataset = MScanDataset(archive)
        paths = export(
            dataset,
            tmp_path,
            output_format=output_format,
            content="tensors",
            points=POINTS[0],
            dtype="float16",
        )
        stored = np.concatenate([p.payload for p in dataset.packets(POINTS[0])])
        np.testing.assert_array_equal(read(paths[0])["activation"], stored)


class TestCommands:
    def test_info(self, archive):
        """info shows segments, hook points, rows, steps and samples."""
        said = run("info", archive).output
        for word in ("0–7", "0–704", "40", "closed", *POINTS):
            assert word in said, said

    def test_info_is_plain(self, tmp_path):
        """Names in an archive cannot colour the terminal or move its cursor."""
        with MScanWriter(tmp_path / "a.mscan", {}, points=[("[red]x[/red]\x1b[2J", None, 1)]):
            pass
        said = run("info", tmp_path).output
        assert "[red]x[/red]" in said
        assert "\x1b[2J" not in said

    def test_info_of_an_open_segment(self, archive):
        """info shows what is there of a segment that is being written."""
        path = segment_of(archive)
        path.write_bytes(path.read_bytes()[:-10])
        done = run("info", path)
        assert done.exit_code == 0
        assert "torn" in done.output

    def test_verify(self, archive):
        """verify ends in 0 for a whole archive."""
        done = run("verify", archive)
        assert (done.exit_code, "whole" in done.output) == (0, True)

    def test_verify_names_the_place(self, archive):
        """verify names file, byte and chunk of what is wrong, and ends in 1."""
        path = segment_of(archive)
        data = bytearray(path.read_bytes())
        offset = int(open_segment(path).entries[3]["offset"])
        data[offset + 192] ^= 1
        path.write_bytes(data)
        done = run("verify", archive)
        assert done.exit_code == 1
        assert f"{path} at byte {offset + 192} (chunk 3)" in done.output

    def test_recover(self, archive):
        """recover mends a torn segment, says what it left out, and is idle the second time."""
        path = segment_of(archive)
        path.write_bytes(path.read_bytes()[: int(open_segment(path).entries[5]["offset"]) + 100])
        assert run("verify", archive).exit_code == 1
        done = run("recover", archive)
        assert (done.exit_code, "left out" in done.output) == (0, True)
        assert run("verify", archive).exit_code == 0
        assert "whole already" in run("recover", archive).output

    def test_recover_says_what_cannot_be(self, archive):
        """recover ends in 1 for a file that holds nothing of an archive."""
        segment_of(archive).write_bytes(b"nothing" * 100)
        done = run("recover", archive)
        assert (done.exit_code, "not recovered" in done.output) == (1, True)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["info", "{tmp}/missing"], "holds no .mscan segment"),
            (["export", "parquet", "{out}", "-o", "{tmp}/x", "--steps", "5"], "--steps 5 is not a range"),
            (["export", "parquet", "{out}", "-o", "{tmp}/x", "--steps", "9:3"], "--steps 9:3 is not a range"),
            (
                ["export", "parquet", "{out}", "-o", "{tmp}/x", "--points", "*.mlp"],
                "no hook point matches '*.mlp'",
            ),
        ],
    )
    def test_bad_input(self, archive, tmp_path, arguments, sentence):
        """Bad input is a ConfigError that says what is wrong."""
        done = run(*(a.format(tmp=tmp_path, out=archive) for a in arguments))
        assert isinstance(done.exception, ConfigError)
        assert sentence in str(done.exception)
        assert not (tmp_path / "x").exists()

    def test_pyarrow_missing(self, archive, tmp_path, monkeypatch):
        """Without pyarrow, Parquet is refused with what to install."""
        monkeypatch.setattr("asysi.archive.sinks.find_spec", lambda _name: None)
        done = run("export", "parquet", archive, "-o", tmp_path / "x")
        assert "asysi[export]" in str(done.exception)

    @pytest.mark.parametrize("point", ["../../etc/passwd", "/root", "..", "", "a/b", "a\x00b", "é" * 300])
    def test_names_stay_in_their_folder(self, tmp_path, point):
        """Whatever an archive calls its hook points, a file stays in the export's folder."""
        path = tmp_path / f"{file_name(point)}.parquet"
        assert path.resolve().parent == tmp_path.resolve()
        assert not path.name.startswith(".")


class TestCat:
    def rows(self, *arguments):
        done = run("cat", *arguments)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.output.splitlines()]

    def test_metrics(self, archive):
        """cat prints a JSON object for each row that was asked for, with the names of the fields."""
        rows = self.rows(archive, "--points", "encoder.layer.1", "--steps", "2:4", "--samples", ":303")
        assert [row["sample"] for row in rows] == [200, 201, 202, 203, 204, 300, 301, 302]
        assert {row["hook_point"] for row in rows} == {"encoder.layer.1"}
        assert rows[0]["holdout"] is False
        assert rows[0]["l2"] == 200.0
        assert set(METRICS_DTYPE.names) - {"flags"} < set(rows[0])

    def test_tensors(self, archive):
        """cat prints activations as lists, and stops at its limit."""
        rows = self.rows(archive, "--content", "tensors", "-n", 7)
        assert len(rows) == 7
        first = next(MScanDataset(archive).packets(POINTS[0]))
        assert rows[0]["activation"] == first.payload[0].astype(float).tolist()

    def test_torn(self, archive):
        """cat prints what is whole of a torn segment."""
        path = segment_of(archive)
        path.write_bytes(path.read_bytes()[:-10])
        assert len(self.rows(archive)) == 80

    def test_no_such_point(self, archive):
        """A glob that matches nothing is an error that lists the hook points."""
        done = run("cat", archive, "--points", "*.mlp")
        assert isinstance(done.exception, ConfigError)
        assert POINTS[0] in str(done.exception)


class TestMerge:
    def content(self, packet):
        header = packet.header.copy()
        header["account"] = 0  # the segment's own number of the hook point
        return header.tobytes(), packet.rows.tobytes(), packet.payload.tobytes()

    def everything(self, path):
        dataset = MScanDataset(path)
        packets = {p: [self.content(q) for q in dataset.packets(p)] for p in POINTS}
        return packets, {p: dataset.metrics(p)["l2"].tobytes() for p in POINTS}

    @pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
    def test_every_bit(self, archive, tmp_path, compression):
        """Merged segments hold the same packets and records, verify, and rotate at the size asked for."""
        folder = archive / "archive"
        second = folder / "attempt-0000-segment-0001.mscan"
        with MScanWriter(second, {}, segment=1) as writer:
            for packet in MScanDataset(segment_of(archive)).packets(POINTS[1]):
                writer.append_tensor(packet)
        before = self.everything(folder)
        done = run("merge", folder, "-o", tmp_path / "m", "--compression", compression, "--rotate", "1Gi")
        assert done.exit_code == 0, done.output
        assert [path.name for path in (tmp_path / "m").iterdir()] == [segment_of(archive).name]
        assert run("verify", tmp_path / "m").exit_code == 0
        assert self.everything(tmp_path / "m") == before
        assert run("merge", folder, "-o", tmp_path / "small", "--rotate", "4Ki").exit_code == 0
        assert len(list((tmp_path / "small").iterdir())) > 2
        assert self.everything(tmp_path / "small") == before

    def test_refusals(self, archive, tmp_path):
        """Segments given twice, and folders that hold segments, are refused; damage leaves no file."""
        twice = run("merge", archive, archive, "-o", tmp_path / "m")
        assert "both segment 0 of attempt 0" in str(twice.exception)
        assert "already holds segments" in str(run("merge", archive, "-o", archive / "archive").exception)
        path = segment_of(archive)
        data = bytearray(path.read_bytes())
        data[int(open_segment(path).entries[-1]["offset"]) + 200] ^= 1
        path.write_bytes(data)
        assert run("merge", archive, "-o", tmp_path / "m").exit_code == 1
        assert list((tmp_path / "m").iterdir()) == []


def test_help_teaches():
    """Every command explains itself, with an example where it has many options."""
    for command in ("info", "verify", "recover", "export", "cat", "merge"):
        said = run(command, "--help").output
        assert "Usage" in said
        assert len(said.splitlines()) > 8
    for command in ("export", "cat", "merge"):
        assert f"asysi mscan {command}" in run(command, "--help").output
