"""Archives in stores: read by ranges, with nothing more fetched than was asked for."""

import fsspec
import numpy as np
import pytest
from tests.packets import packet_of
from typer.testing import CliRunner

from asysi.archive.commands import app
from asysi.archive.dataset import MScanDataset
from asysi.archive.errors import CorruptError, TornError
from asysi.archive.measure import measure
from asysi.archive.remote import RemoteBytes
from asysi.archive.torch_data import MScanRows
from asysi.archive.writer import MScanWriter, SeqInfo
from asysi.contract.errors import ConfigError

ROWS, WIDTH = 64, 512


def packet(sequence, point):
    return packet_of(
        np.random.default_rng(sequence).standard_normal((ROWS, WIDTH)).astype("<f4"), sequence, point
    )


@pytest.fixture
def archive(tmp_path):
    """An archive of 11 MiB at two hook points."""
    folder = tmp_path / "run" / "archive"
    folder.mkdir(parents=True)
    with MScanWriter(folder / "attempt-0000-segment-0000.mscan", {}) as writer:
        for sequence in range(80):
            one = packet(sequence, "ab"[sequence % 2])
            writer.append_records(measure(one), SeqInfo(one.point, 0, sequence, sequence, WIDTH))
            writer.append_tensor(one)
    return tmp_path / "run"


@pytest.fixture
def stored(archive):
    """The same archive in fsspec's memory, and its address."""
    files = fsspec.filesystem("memory")
    for path in (archive / "archive").iterdir():
        files.pipe_file(f"/bucket/run/archive/{path.name}", path.read_bytes())
    yield "memory://bucket/run"
    files.rm("/bucket", recursive=True)


def content(dataset, **chosen):
    return [(p.point, p.header.tobytes(), p.payload.tobytes()) for p in dataset.packets(**chosen)]


def test_same_content(archive, stored):
    """An archive in a store gives what the local one gives: packets, records, rows."""
    local, remote = MScanDataset(archive), MScanDataset(stored)
    assert content(remote) == content(local)
    assert remote.metrics("b").tobytes() == local.metrics("b").tobytes()
    rows = MScanRows(stored, "a").take(np.array([5, 2000, 3]))
    np.testing.assert_array_equal(rows["activation"][2], packet(0, "a").payload[3])


def test_ranges_only(stored, monkeypatch):
    """One step of one hook point fetches the index and the chunks that hold it, not the file."""
    fetched = []
    real = RemoteBytes._fetch

    def counted(self, start, end):
        fetched.append(end - start)
        return real(self, start, end)

    monkeypatch.setattr(RemoteBytes, "_fetch", counted)
    assert len(content(MScanDataset(stored), point="a", steps=(40, 41))) == 1
    assert sum(fetched) < 4 << 20
    assert len(fetched) <= 4


def test_damage(stored):
    """A damaged or truncated object is an error, as a file is."""
    files = fsspec.filesystem("memory")
    name = "/bucket/run/archive/attempt-0000-segment-0000.mscan"
    data = bytearray(files.cat_file(name))
    files.pipe_file(name, bytes(data[:-9]))
    with pytest.raises(TornError):
        MScanDataset(stored)
    data[5 << 20] ^= 1
    files.pipe_file(name, bytes(data))
    with pytest.raises(CorruptError):
        content(MScanDataset(stored))


def test_commands(stored):
    """info and cat take an address; verify and recover say that they work on files."""
    said = CliRunner().invoke(app, ["info", stored])
    assert "2,560" in said.output, said.output
    assert len(CliRunner().invoke(app, ["cat", stored, "-n", "3"]).output.splitlines()) == 3
    refused = CliRunner().invoke(app, ["recover", stored])
    assert isinstance(refused.exception, ConfigError)
    nothing = CliRunner().invoke(app, ["info", "memory://bucket/none"])
    assert "holds no .mscan segment" in str(nothing.exception)
