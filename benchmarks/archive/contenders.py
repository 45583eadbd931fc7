"""The compared formats, each with the same four functions.

`write` gets blocks of rows in the order in which a run publishes them, cycling through the hook points. The
readers yield arrays that together hold every requested byte. Libraries are imported on use, because each
contender runs in its own process.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Blocks = Iterator[tuple[str, np.ndarray]]
"""Hook point and rows [n, width] of bfloat16, as uint16."""


class MScan:
    """`.mscan`: packets as they come from the bus, with 24 bytes of lineage per row, unlike other formats."""

    compression = "none"
    verify = True

    def write(self, folder: Path, blocks: Blocks) -> None:
        from asysi.archive.writer import MScanWriter

        with MScanWriter(
            folder / "attempt-0000-segment-0000.mscan", {}, compression=self.compression
        ) as writer:
            for sequence, (point, rows) in enumerate(blocks):
                writer.append_tensor(_packet(sequence, point, rows))

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        from asysi.archive.dataset import MScanDataset

        for packet in MScanDataset(folder, verify=self.verify).packets():
            yield packet.payload

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        from asysi.archive.dataset import MScanDataset

        for packet in MScanDataset(folder, verify=self.verify).packets(point):
            yield packet.payload

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        import torch

        from asysi.archive.torch_data import MScanRows

        taken = MScanRows(folder, point, verify=self.verify).take(numbers)
        yield taken["activation"].view(torch.int16).numpy()


class MScanUnchecked(MScan):
    """`.mscan` without payload checksums on reading and writing."""

    verify = False

    def write(self, folder: Path, blocks: Blocks) -> None:
        from asysi.archive import writer

        real = writer.checksum
        writer.checksum = lambda *parts: real(*parts) if len(parts) == 1 else 0  # payload and padding
        super().write(folder, blocks)


class MScanZstd(MScan):
    """`.mscan` with zstd after a byte shuffle."""

    compression = "zstd"


class MScanLz4(MScan):
    """`.mscan` with LZ4 after a byte shuffle."""

    compression = "lz4"


def _packet(sequence: int, point: str, rows: np.ndarray) -> object:
    from asysi.bus.packet import HEADER_DTYPE, MAGIC, ROW_DTYPE, VERSION, ActivationPacket, Dtype

    header = np.zeros(1, HEADER_DTYPE)
    for name, value in {
        "magic": MAGIC, "version": VERSION, "header_bytes": 192, "sequence": sequence, "step": sequence,
        "rows": len(rows), "width": rows.shape[1], "dtype": Dtype.BFLOAT16, "payload_bytes": rows.nbytes,
    }.items():  # fmt: skip
        header[name] = value
    return ActivationPacket(header[0], point, np.zeros(len(rows), ROW_DTYPE), None, rows)


class Parquet:
    """Parquet by pyarrow: one file per hook point, rows as fixed-size binary, row groups of 32 MiB."""

    checksum = False

    def write(self, folder: Path, blocks: Blocks) -> None:
        import pyarrow as pa
        from pyarrow import parquet as pq

        writers, held = {}, {}

        def put(point: str) -> None:
            rows = np.concatenate(held.pop(point))
            kind = pa.binary(2 * rows.shape[1])  # a list of uint16 would take twice the space
            column = pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])
            table = pa.table({"x": column})
            if point not in writers:
                writers[point] = pq.ParquetWriter(
                    folder / f"{point}.parquet", table.schema, compression="none", use_dictionary=False,
                    write_page_checksum=self.checksum,
                )  # fmt: skip
            writers[point].write_table(table)

        for point, rows in blocks:
            held.setdefault(point, []).append(rows)
            if sum(part.nbytes for part in held[point]) >= 32 << 20:
                put(point)
        for point in list(held):
            put(point)
        for writer in writers.values():
            writer.close()

    def _file(self, path: Path) -> object:
        from pyarrow import parquet as pq

        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=self.checksum)

    def _groups(self, path: Path, groups: list[int] | None = None) -> Iterator[np.ndarray]:
        file = self._file(path)
        for group in range(file.num_row_groups) if groups is None else groups:
            for chunk in file.read_row_group(group)["x"].chunks:
                width = chunk.type.byte_width // 2
                flat = np.frombuffer(
                    chunk.buffers()[1], np.uint16, len(chunk) * width, chunk.offset * width * 2
                )
                yield flat.reshape(-1, width)

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        for path in sorted(folder.iterdir()):
            yield from self._groups(path)

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        yield from self._groups(folder / f"{point}.parquet")

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        path = folder / f"{point}.parquet"
        meta = self._file(path).metadata
        ends = np.cumsum([meta.row_group(n).num_rows for n in range(meta.num_row_groups)])
        groups = np.searchsorted(ends, numbers, "right")
        for group in np.unique(groups):
            rows = np.concatenate(list(self._groups(path, [int(group)])))
            yield rows[numbers[groups == group] - (ends[group - 1] if group else 0)]


class ParquetChecked(Parquet):
    """Parquet with page checksums, verified on reading."""

    checksum = True


class HuggingFace:
    """Arrow files of HF datasets: written by ArrowWriter, read as a memory-mapped table."""

    def write(self, folder: Path, blocks: Blocks) -> None:
        import pyarrow as pa
        from datasets.arrow_writer import ArrowWriter

        writers = {}
        for point, rows in blocks:
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            if point not in writers:
                writers[point] = ArrowWriter(path=str(folder / f"{point}.arrow"))
            writers[point].write_table(pa.table({"x": column}))
        for writer in writers.values():
            writer.finalize()

    def _table(self, path: Path) -> object:
        from datasets import Dataset

        return Dataset.from_file(str(path)).data.table["x"]

    def _read(self, path: Path) -> Iterator[np.ndarray]:
        for chunk in self._table(path).chunks:
            yield chunk.flatten().to_numpy().reshape(len(chunk), -1)

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        for path in sorted(folder.glob("*.arrow")):
            yield from self._read(path)

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        yield from self._read(folder / f"{point}.arrow")

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        from datasets import Dataset

        taken = Dataset.from_file(str(folder / f"{point}.arrow")).with_format("numpy")[numbers]
        yield np.asarray(taken["x"], np.uint16)


class Safetensors:
    """safetensors: shards of 256 MiB per hook point; rows are buffered until a shard is full."""

    def write(self, folder: Path, blocks: Blocks) -> None:
        from safetensors.numpy import save_file

        held: dict[str, list[np.ndarray]] = {}
        number: dict[str, int] = {}

        def put(point: str) -> None:
            shard = number[point] = number.get(point, -1) + 1
            save_file({"x": np.concatenate(held.pop(point))}, folder / f"{point}-{shard:05d}.safetensors")

        for point, rows in blocks:
            held.setdefault(point, []).append(rows)
            if sum(part.nbytes for part in held[point]) >= 256 << 20:
                put(point)
        for point in list(held):
            put(point)

    def _read(self, paths: list[Path]) -> Iterator[np.ndarray]:
        from safetensors import safe_open

        for path in paths:
            with safe_open(path, "np") as file:
                yield file.get_tensor("x")

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        yield from self._read(sorted(folder.iterdir()))

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        yield from self._read(sorted(folder.glob(f"{point}-*")))

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        from safetensors import safe_open

        first = 0
        for path in sorted(folder.glob(f"{point}-*")):
            with safe_open(path, "np") as file:
                part = file.get_slice("x")
                size = part.get_shape()[0]
                for number in numbers[(numbers >= first) & (numbers < first + size)]:
                    yield part[int(number - first) : int(number - first) + 1]
            first += size


class Hdf5:
    """h5py: one data set per hook point, chunks of 1 MiB."""

    checksum = False

    def write(self, folder: Path, blocks: Blocks) -> None:
        import h5py

        with h5py.File(folder / "a.h5", "w") as file:
            for point, rows in blocks:
                if point not in file:
                    width = rows.shape[1]
                    file.create_dataset(
                        point, (0, width), "u2", maxshape=(None, width), fletcher32=self.checksum,
                        chunks=(max(1, (1 << 20) // (2 * width)), width),
                    )  # fmt: skip
                data = file[point]
                data.resize(len(data) + len(rows), 0)
                data[-len(rows) :] = rows

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        import h5py

        with h5py.File(folder / "a.h5") as file:
            for point in file:
                yield from self._chunks(file[point])

    def _chunks(self, data: object) -> Iterator[np.ndarray]:
        for part in data.iter_chunks():
            yield data[part]

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        import h5py

        with h5py.File(folder / "a.h5") as file:
            yield from self._chunks(file[point])

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        import h5py

        with h5py.File(folder / "a.h5") as file:
            yield file[point][np.unique(numbers)]


class Hdf5Checked(Hdf5):
    """h5py with Fletcher-32 checksums."""

    checksum = True


class Zarr:
    """zarr: one array per hook point, chunks of 1 MiB, no compression."""

    checksum = False

    def write(self, folder: Path, blocks: Blocks) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        root, arrays, held = zarr.open_group(folder, mode="w"), {}, {}
        for point, rows in blocks:
            if point not in arrays:
                width = rows.shape[1]
                arrays[point] = root.create_array(
                    point, shape=(0, width), dtype="uint16", chunks=(max(1, (1 << 20) // (2 * width)), width),
                    compressors=[Crc32cCodec()] if self.checksum else None,
                )  # fmt: skip
            held.setdefault(point, []).append(rows)
            size = arrays[point].chunks[0]
            waiting = np.concatenate(held[point])
            whole = len(waiting) - len(waiting) % size
            if whole:
                arrays[point].append(waiting[:whole])
            held[point] = [waiting[whole:]]
        for point, rest in held.items():
            if len(rest[0]):
                arrays[point].append(rest[0])

    def _read(self, array: object) -> Iterator[np.ndarray]:
        size = 16 * array.chunks[0]
        for first in range(0, array.shape[0], size):
            yield array[first : first + size]

    def sequential(self, folder: Path) -> Iterator[np.ndarray]:
        import zarr

        for _, array in zarr.open_group(folder, mode="r").arrays():
            yield from self._read(array)

    def point(self, folder: Path, point: str) -> Iterator[np.ndarray]:
        import zarr

        yield from self._read(zarr.open_group(folder, mode="r")[point])

    def rows(self, folder: Path, point: str, numbers: np.ndarray) -> Iterator[np.ndarray]:
        import zarr

        yield zarr.open_group(folder, mode="r")[point].oindex[np.unique(numbers)]


class ZarrChecked(Zarr):
    """zarr with CRC32C checksums."""

    checksum = True


CONTENDERS = {
    "mscan": MScan,
    "mscan, no checksum": MScanUnchecked,
    "mscan zstd": MScanZstd,
    "mscan lz4": MScanLz4,
    "Parquet": Parquet,
    "Parquet, checksum": ParquetChecked,
    "HF datasets (Arrow)": HuggingFace,
    "safetensors": Safetensors,
    "HDF5": Hdf5,
    "HDF5, checksum": Hdf5Checked,
    "Zarr": Zarr,
    "Zarr, checksum": ZarrChecked,
}


def sync_all(folder: Path) -> None:
    """Sync every file of a folder to storage."""
    for path in [*folder.rglob("*"), folder]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
