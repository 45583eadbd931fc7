"""A checkpoint: tensors by name, local or remote, read lazily and without executing any of its code."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from asysi.contract.errors import ConfigError
from asysi.weights.errors import (
    DuplicateNameError,
    HeaderError,
    LfsPointerError,
    MissingTensorError,
    WeightsError,
)
from asysi.weights.reading.dtypes import PACKED_BITS, STORED, unpack
from asysi.weights.reading.gguf_file import gguf_tensors
from asysi.weights.reading.places import LocalPlace, Place, RemotePlace
from asysi.weights.reading.quantised import dequantised
from asysi.weights.reading.safetensors_header import Entry, read_header
from asysi.weights.reading.shard_files import FORMATS, find_shards
from asysi.weights.reading.storage import Backend, Bytes, Storage, is_remote, lfs_pointer_size, open_storage
from asysi.weights.reading.tensors import Array, Coding, Read, Tensor


@dataclass
class Checkpoint:
    """An open checkpoint. Close it, or use it as a context manager."""

    source: str
    """Path or address as given."""
    tensors: Mapping[str, Tensor]
    """Readable tensors, in file order."""
    problems: list[WeightsError] = field(default_factory=list)
    """Why other tensors cannot be read."""
    files: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """`config.json` next to the weights, empty if missing."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """`adapter_config.json` next to the weights, empty unless it is a PEFT adapter."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Metadata of a GGUF file, by key."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know about the files; none of it loses a tensor."""
    _open: list[Storage] = field(default_factory=list, repr=False)

    def close(self) -> None:
        """Close the files."""
        for storage in self._open:
            storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()


def open_checkpoint(source: str | Path, *, backend: Backend = "pread") -> Checkpoint:
    """Open a folder with safetensors, a safetensors, GGUF or npz file, or an fsspec address of either.

    Parts that cannot be read are listed in `problems`; the rest can be read.

    Args:
        source: path or address.
        backend: how local safetensors are read: `pread` copies each range, `mmap` maps the file.

    Raises:
        PickleError: there are only pickles.
        ConfigError: nothing can be read.
    """
    text = str(source).removeprefix("file://")
    place = RemotePlace(text) if is_remote(text) else LocalPlace(Path(text).expanduser())
    chosen = find_shards(place)
    shards, index, problems = chosen.files, chosen.index, chosen.problems
    checkpoint = Checkpoint(str(source), {}, problems, config=_json(place, "config.json"), notes=chosen.notes)
    checkpoint.adapter = _json(place, "adapter_config.json") if "adapter" in " ".join(shards) else {}
    found: dict[str, list[Tensor]] = {}
    for shard in shards:
        try:
            tensors = _tensors(place.full(shard), shard, backend, checkpoint)
        except (WeightsError, OSError) as error:
            lost = tuple(name for name, file in index.items() if file == shard)
            checkpoint.problems.append(_lost(error, shard, lost))
            continue
        for tensor in tensors:
            found.setdefault(tensor.name, []).append(tensor)
    checkpoint.tensors = _unique(found, checkpoint.problems)
    problems += _unkept(index, checkpoint)
    checkpoint.tensors = dequantised(checkpoint.tensors, _quantisation(place, checkpoint.config))
    checkpoint.files = tuple(shards)
    return checkpoint


def _quantisation(place: Place, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the weights are quantised: from config.json, or from older GPTQ's quantize_config.json."""
    if isinstance(found := config.get("quantization_config"), dict):
        return found
    older = _json(place, "quantize_config.json")
    return {"quant_method": "gptq", **older} if older else {}


def _lost(error: WeightsError | OSError, shard: str, lost: tuple[str, ...]) -> WeightsError:
    if isinstance(error, WeightsError):
        return type(error)(error.problem, error.tensors or lost)
    return WeightsError(f"{shard}: it cannot be read ({error})", lost)


def _unique(found: Mapping[str, list[Tensor]], problems: list[WeightsError]) -> dict[str, Tensor]:
    for name, several in found.items():
        if len(several) > 1:
            files = " and in ".join(tensor.file for tensor in several)
            problems.append(DuplicateNameError(f"{name} is in {files}, so it is ambiguous", (name,)))
    return {name: several[0] for name, several in found.items() if len(several) == 1}


def _unkept(index: Mapping[str, str], checkpoint: Checkpoint) -> list[WeightsError]:
    """Return tensors in the index that no file contains, except those already known to be lost."""
    known = {name for problem in checkpoint.problems for name in problem.tensors}
    absent = [name for name in index if name not in checkpoint.tensors and name not in known]
    return [
        MissingTensorError(f"{index[name]}: the index says that it holds {name}, and it does not", (name,))
        for name in absent
    ]


def _json(place: Place, name: str) -> dict[str, Any]:
    try:
        found = json.loads(place.text(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tensors(path: str, shard: str, backend: Backend, checkpoint: Checkpoint) -> list[Tensor]:
    if size := lfs_pointer_size(path):
        raise LfsPointerError(
            f"{shard}: it is a Git LFS pointer to {size} bytes, not the file; run `git lfs pull` in its "
            "repository"
        )
    if shard.endswith(".npz"):
        return _npz(path, shard, checkpoint)
    if shard.endswith(".gguf"):
        return gguf_tensors(path, shard, checkpoint.metadata)
    if not shard.endswith(".safetensors"):
        raise ConfigError(f"{path} is none of {', '.join(FORMATS)}")
    storage = open_storage(path, backend)
    checkpoint._open.append(storage)
    header = read_header(storage)
    checkpoint.problems += header.problems
    framework = header.metadata.get("format", "safetensors")

    return [_entry_tensor(one, storage, shard, framework) for one in header.entries.values()]


def _entry_tensor(entry: Entry, storage: Storage, shard: str, framework: str) -> Tensor:
    dtype, begin = entry.dtype, entry.start
    if bits := PACKED_BITS.get(entry.stored):
        return _packed_tensor(entry, bits, storage, shard, framework)

    def read(start: int, stop: int, into: Bytes | None) -> Array:
        raw = storage.read(begin + start * dtype.itemsize, begin + stop * dtype.itemsize, into)
        elements = raw.view(dtype)
        return elements if elements.flags.aligned else elements.copy()

    return Tensor(entry.name, dtype, entry.shape, shard, framework, read)


def _packed_tensor(entry: Entry, bits: int, storage: Storage, shard: str, framework: str) -> Tensor:
    """Return a tensor of elements smaller than a byte: unpacked as a whole, hashed as stored."""

    def packed() -> Bytes:
        return storage.read(entry.start, entry.stop)

    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        return unpack(packed(), bits)[start:stop].view(entry.dtype)

    coding = Coding(str(entry.dtype), entry.stop - entry.start, parts=lambda: iter((packed(),)))
    note = "6-bit elements read from the least significant bit" if bits == 6 else ""
    return Tensor(entry.name, entry.dtype, entry.shape, shard, framework, read, False, coding, note)


def _npz(path: str, shard: str, checkpoint: Checkpoint) -> list[Tensor]:
    """Return the arrays of an npz; each is read as a whole on demand, and pickled ones are never read."""
    if is_remote(path):
        raise ConfigError(f"{path}: an npz is read from a local file only; fetch it first")
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            with archive.open(member) as stream:
                try:
                    version = np.lib.format.read_magic(stream)
                    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                        version, np.lib.format.read_array_header_2_0
                    )
                    shape, fortran, dtype = read(stream)
                except ValueError as error:
                    checkpoint.problems.append(HeaderError(f"{shard}: {name}: {error}", (name,)))
                    continue
            if dtype.hasobject or dtype not in STORED.values():
                checkpoint.problems.append(
                    HeaderError(f"{shard}: {name} has the type {dtype}, which holds no weights", (name,))
                )
                continue
            read_member = _npz_reader(path, member, fortran=fortran)
            found.append(Tensor(name, dtype, shape, shard, "npz", read_member, by_range=False))
    return found


def _npz_reader(path: str, member: str, *, fortran: bool) -> Read:
    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        flat: Array = array.ravel(order="C") if fortran else array.reshape(-1)
        return flat[start:stop]

    return read
