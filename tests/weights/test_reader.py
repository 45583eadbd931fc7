"""Reading checkpoints: every value exact, every defect its own error, everything else still read."""

import contextlib
import io
import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from asysi.contract.errors import ConfigError
from asysi.weights.errors import (
    DuplicateNameError,
    EscapingPathError,
    GapError,
    HeaderError,
    HeaderSizeError,
    MissingShardError,
    MissingTensorError,
    OverlapError,
    PickleError,
    TruncatedShardError,
)
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.reading.dtypes import PACKED_BITS, STORED
from asysi.weights.reading.safetensors_header import parse_header
from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze, iterate_parameters

GENERATOR = np.random.default_rng(0)


def raw_file(path, header, data=b""):
    """Write a safetensors file with this header, as it stands: text, or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, stop, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": shape or [(stop - start) // 4], "data_offsets": [start, stop]}


def sharded(folder, shards, **index):
    """Write shards {file: {name: array}} with an index; `index` overrides where a name is said to be."""
    weight_map = {}
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map | index}))
    return folder


def two_shards(folder):
    return sharded(
        folder,
        {
            "model-00001-of-00002.safetensors": {"a": np.ones((4, 3), "f4"), "b": np.arange(6, dtype="f4")},
            "model-00002-of-00002.safetensors": {"c": np.full(5, 2, "f4"), "d": np.zeros((2, 2), "f4")},
        },
    )


def packed(elements, bits):
    """Return elements of a byte each as a stream of `bits` each, the lowest bits first."""
    stream = sum(value << bits * place for place, value in enumerate(elements))
    return stream.to_bytes(len(elements) * bits // 8, "little")


def problems_of(source):
    with open_checkpoint(source) as checkpoint:
        return checkpoint.problems, list(checkpoint.tensors)


@pytest.mark.parametrize("backend", ["pread", "mmap"])
@pytest.mark.parametrize("stored", sorted(STORED))
def test_every_type_is_exact(tmp_path, stored, backend):
    """Every bit pattern of every type that safetensors has comes back as it was written, NaNs included."""
    dtype = STORED[stored]
    limit = 2 if stored == "BOOL" else 1 << PACKED_BITS.get(stored, 8)
    data = GENERATOR.integers(0, limit, 60 * dtype.itemsize, dtype=np.uint8).tobytes()
    raw = packed(data, PACKED_BITS[stored]) if stored in PACKED_BITS else data
    raw_file(tmp_path / "m.safetensors", {"x": entry(0, len(raw), [5, 12], stored)}, raw)
    with open_checkpoint(tmp_path, backend=backend) as checkpoint:
        tensor = checkpoint.tensors["x"]
        assert (tensor.dtype, tensor.array().shape) == (dtype, (5, 12))
        assert tensor.array().tobytes() == data
        assert tensor.read(7, 19).tobytes() == data[7 * dtype.itemsize : 19 * dtype.itemsize]
        assert b"".join(part.tobytes() for part in tensor.chunks(11)) == data


def test_bfloat16_is_what_it_stands_for(tmp_path):
    """bfloat16 and float8 give the numbers that ml_dtypes and the definition say."""
    patterns = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "<u2")
    raw_file(tmp_path / "m.safetensors", {"x": entry(0, 8, [4], "BF16"), "y": entry(8, 10, [2], "F8_E4M3")},
             patterns.tobytes() + bytes([0x38, 0x7E]))  # fmt: skip
    found = dict(iterate_parameters(tmp_path))
    assert found["x"].astype("f8").tolist() == [1.0, -2.0, np.inf, 2.0**-133]
    assert found["y"].astype("f8").tolist() == [1.0, 448.0]


def test_sharded(tmp_path):
    """An index is followed; names, shapes, framework and shards are as written."""
    with open_checkpoint(two_shards(tmp_path)) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b", "c", "d"]
        assert checkpoint.tensors["c"].framework == "pt"
        assert checkpoint.tensors["c"].file == "model-00002-of-00002.safetensors"
        assert not checkpoint.problems


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    """Opening reads headers alone: a terabyte that is not there yet does not matter until it is read."""
    path = raw_file(tmp_path / "m.safetensors", {"x": entry(0, 2**40, [2**38])})
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 2**40)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["x"].read(2**37, 2**37 + 3).tolist() == [0, 0, 0]


def test_remote_ranges():
    """An fsspec address is read by ranges, sharded or single."""
    save = io.BytesIO()
    text = json.dumps({"x": entry(0, 40), "y": entry(40, 80)}).encode()
    values = np.arange(20, dtype="<f4")
    save.write(struct.pack("<Q", len(text)) + text + values.tobytes())
    files = MemoryFileSystem()
    files.pipe("/weights-test/model.safetensors", save.getvalue())
    asked = []
    plain = MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **more):
        asked.append((start, end))
        return plain(self, path, start=start, end=end, **more)

    MemoryFileSystem.cat_file = counted
    try:
        for source in ("memory://weights-test", "memory://weights-test/model.safetensors"):
            with open_checkpoint(source) as checkpoint:
                assert checkpoint.tensors["y"].array().tolist() == list(range(10, 20))
    finally:
        MemoryFileSystem.cat_file = plain
        files.rm("/weights-test", recursive=True)
    begin = 8 + len(text)
    assert (begin + 40, begin + 80) in asked
    assert (begin, begin + 80) not in asked


def test_npz(tmp_path):
    """An npz is read, Fortran order too; a pickled array in it is refused by name, the others are read."""
    first = np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "m.npz", a=first, b=np.asfortranarray(first), bad=np.array([{}], object))
    problems, _ = problems_of(tmp_path)
    assert [(type(one), one.tensors) for one in problems] == [(HeaderError, ("bad",))]
    with open_checkpoint(tmp_path / "m.npz") as checkpoint:
        for name in "ab":
            np.testing.assert_array_equal(checkpoint.tensors[name].array(), first)


def test_gguf(tmp_path):
    """A GGUF is read: plain types exactly, quantised ones as the numbers that they stand for."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    half = GENERATOR.standard_normal((3, 32)).astype("f2")
    values = GENERATOR.standard_normal((2, 32)).astype("f4")
    quantised = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", half)
    writer.add_tensor("blk.0.ffn_up.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensors["blk.0.attn_q.weight"].array(), half)
        got = checkpoint.tensors["blk.0.ffn_up.weight"]
        assert (got.shape, got.framework, got.dtype) == ((2, 32), "gguf", np.float32)
        np.testing.assert_allclose(got.array(), values, atol=np.abs(values).max() / 127)


def test_what_has_to_be_unpacked_is_unpacked_once(tmp_path):
    """An array that cannot be read by range is read once for all its chunks."""
    np.savez_compressed(tmp_path / "m.npz", a=np.arange(1000.0))
    asked = []
    with open_checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.tensors["a"]
        plain = tensor._read
        object.__setattr__(tensor, "_read", lambda *where: asked.append(where) or plain(*where))
        assert np.concatenate(list(tensor.chunks(300))).tolist() == list(range(1000))
    assert asked == [(0, 1000, None)]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    """A folder with pickles alone, or a pickle, is refused with the way out, and nothing of it is run."""
    (tmp_path / name).write_bytes(pickle.dumps({"x": 1}))
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(
            PickleError, match=r"pickle checkpoint refused.*weights_only=True.*model\.safetensors"
        ):
            open_checkpoint(source)


def test_nothing_there(tmp_path):
    """An empty folder, or none, is bad input."""
    with pytest.raises(ConfigError, match="holds no safetensors, GGUF or npz"):
        open_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="there is no"):
        open_checkpoint(tmp_path / "missing")


class TestDefects:
    """Each defect has its own error, which names the file; all tensors that it does not touch are read."""

    def test_truncated_shard(self, tmp_path):
        """A file that ends early loses the tensors behind its end, no others."""
        two_shards(tmp_path)
        shard = tmp_path / "model-00001-of-00002.safetensors"
        shard.write_bytes(shard.read_bytes()[:-4])
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(TruncatedShardError, ("b",))]
        assert sorted(names) == ["a", "c", "d"]
        assert shard.name in problems[0].problem

    def test_a_file_of_five_bytes(self, tmp_path):
        """A file without even a header's length loses its tensors by the index."""
        two_shards(tmp_path)
        (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"12345")
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(TruncatedShardError, ("c", "d"))]
        assert sorted(names) == ["a", "b"]

    @pytest.mark.parametrize("length", [10**6, 2**63])
    def test_header_larger_than_the_file(self, tmp_path, length):
        """A header that claims more than the file has is not read."""
        two_shards(tmp_path)
        shard = tmp_path / "model-00002-of-00002.safetensors"
        shard.write_bytes(struct.pack("<Q", length) + shard.read_bytes()[8:])
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(HeaderSizeError, ("c", "d"))]
        assert sorted(names) == ["a", "b"]

    def test_overlap(self, tmp_path):
        """Tensors that share bytes are both refused, a third is read."""
        raw_file(
            tmp_path / "m.safetensors", {"a": entry(0, 8), "b": entry(4, 12), "c": entry(12, 16)}, bytes(16)
        )
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(OverlapError, ("a", "b"))]
        assert names == ["c"]

    def test_gap(self, tmp_path):
        """Bytes that belong to no tensor are said; the tensors are read."""
        raw_file(tmp_path / "m.safetensors", {"a": entry(0, 8), "b": entry(12, 16)}, bytes(16))
        problems, names = problems_of(tmp_path)
        assert [type(one) for one in problems] == [GapError]
        assert names == ["a", "b"]

    def test_duplicate_in_a_header(self, tmp_path):
        """A name that stands twice in a header is refused."""
        one = json.dumps(entry(0, 4))
        text = f'{{"a": {one}, "b": {json.dumps(entry(4, 8))}, "a": {one}}}'.encode()
        raw_file(tmp_path / "m.safetensors", text, bytes(8))
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(DuplicateNameError, ("a",))]
        assert names == ["b"]

    def test_duplicate_in_two_files(self, tmp_path):
        """A name that is in two files is refused."""
        save_file({"a": np.ones(2, "f4"), "b": np.ones(1, "f4")}, tmp_path / "1.safetensors")
        save_file({"a": np.zeros(2, "f4")}, tmp_path / "2.safetensors")
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(DuplicateNameError, ("a",))]
        assert names == ["b"]

    def test_missing_shard(self, tmp_path):
        """A shard that the index names and that is not there loses its tensors."""
        two_shards(tmp_path)
        (tmp_path / "model-00001-of-00002.safetensors").unlink()
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(MissingShardError, ("a", "b"))]
        assert sorted(names) == ["c", "d"]

    def test_missing_tensor(self, tmp_path):
        """A tensor that its shard does not hold is named."""
        sharded(tmp_path, {"1.safetensors": {"a": np.ones(2, "f4")}}, ghost="1.safetensors")
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(MissingTensorError, ("ghost",))]
        assert names == ["a"]

    @pytest.mark.parametrize("path", ["../secret.safetensors", "/etc/passwd", "a/../../x.safetensors", ""])
    def test_escaping_path(self, tmp_path, path):
        """An index cannot lead out of its folder, even to a file that is there."""
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"x": np.ones(1, "f4")}, tmp_path / "secret.safetensors")
        sharded(folder, {"1.safetensors": {"a": np.ones(2, "f4")}}, x=path)
        problems, names = problems_of(folder)
        assert [(type(one), one.tensors) for one in problems] == [(EscapingPathError, ("x",))]
        assert names == ["a"]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ({"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}, "F33"),
            ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "shape"),
            ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "shape"),
            ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "offsets"),
            ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "offsets"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "needs 8"),
            ({"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}, "needs"),
            ({"dtype": "F32", "shape": [1]}, "offsets"),
            ([], "dtype"),
        ],
    )
    def test_entry_that_contradicts_itself(self, tmp_path, value, said):
        """An entry that cannot be is refused with what is wrong; its neighbour is read."""
        raw_file(tmp_path / "m.safetensors", {"bad": value, "good": entry(4, 8)}, bytes(8))
        problems, names = problems_of(tmp_path)
        assert [(type(one), one.tensors) for one in problems] == [(HeaderError, ("bad",))]
        assert said in problems[0].problem
        assert names == ["good"]

    @pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"null", b"[" * 5000])
    def test_header_that_is_no_json_object(self, tmp_path, text):
        """A header that is not a JSON object is an error of its file."""
        raw_file(tmp_path / "m.safetensors", text)
        problems, names = problems_of(tmp_path)
        assert [type(one) for one in problems] == [HeaderError]
        assert not names

    @pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', "[]"])
    def test_index_that_is_none(self, tmp_path, text):
        """An index that cannot be read is bad input: without it unknown protocol what is wanted."""
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ConfigError, match="is not an index of safetensors"):
            open_checkpoint(tmp_path)

    def test_the_others_are_analysed(self, tmp_path):
        """With a lost shard all other tensors have their rows, and the loss is listed once."""
        two_shards(tmp_path)
        (tmp_path / "model-00001-of-00002.safetensors").unlink()
        with open_checkpoint(tmp_path) as checkpoint:
            done = analyze(checkpoint, CheckpointOrigin("p", "m"), Settings())
        assert [row["param_name"] for row in done.rows] == ["c", "d"]
        assert [type(one) for one in done.problems] == [MissingShardError]

    def test_a_file_that_shrinks_while_it_is_read(self, tmp_path):
        """A read that fails is the tensor's problem, with file and name; the others have their rows."""
        save_file({"a": np.ones(10, "f4"), "b": np.ones(10, "f4")}, tmp_path / "m.safetensors")
        with open_checkpoint(tmp_path) as checkpoint:
            file = tmp_path / "m.safetensors"
            with file.open("r+b") as stream:
                stream.truncate(file.stat().st_size - 8)
            done = analyze(checkpoint, CheckpointOrigin("p", "m"), Settings())
        assert [row["param_name"] for row in done.rows] == ["a"]
        assert "m.safetensors: b (10,)" in done.problems[0].problem


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_no_header_breaks_the_parser(text):
    """Whatever is in a header, the answer is a header or a HeaderError."""
    with contextlib.suppress(HeaderError):
        parse_header(text, "file", 1000)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16", "X"]),
                "shape": st.lists(st.integers(-1, 9), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
            }
        ),
        max_size=5,
    )
)
def test_what_is_accepted_lies_in_the_file_and_overlaps_nothing(header):
    """Tensors that the parser accepts lie within the file, have their shape's bytes, and share none."""
    text = json.dumps(header).encode()
    size = 8 + len(text) + 30
    found = parse_header(text, "file", size)
    taken = set()
    for one in found.entries.values():
        assert 8 + len(text) <= one.start <= one.stop <= size
        assert one.stop - one.start == int(np.prod(one.shape)) * one.dtype.itemsize
        assert not taken & set(range(one.start, one.stop))
        taken |= set(range(one.start, one.stop))
    refused = {name for problem in found.problems for name in problem.tensors}
    assert set(found.entries) | refused == set(header) - {"__metadata__"}


def test_zip_slip_is_no_matter(tmp_path):
    """Names inside an npz are names of tensors, never paths that are written to."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        data = io.BytesIO()
        np.save(data, np.ones(2, ml_dtypes.bfloat16).view("u2"))
        archive.writestr("../../x.npy", data.getvalue())
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors["../../x"].array().tolist() == [0x3F80, 0x3F80]
