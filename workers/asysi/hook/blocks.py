"""Splits captured packets into blocks of rows that fit a chunk of the bus. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from asysi.bus.packet import Dtype, Kind, Quantization, rows_that_fit

PART_BITS = 16
"""Number of bits of a source mark that hold the block number."""
_SCALE_BYTES = 4
_QUANTIZED = {Dtype.INT8, Dtype.FP8_E4M3}


class RowTooLargeError(ValueError):
    """A single row does not fit a chunk of the bus."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `start` to `stop` of a captured packet."""

    start: int
    stop: int
    source: int
    """Mark from which a restarted hook resumes; increases with every block and every packet."""


class RowBytes(NamedTuple):
    """Bytes of a row on the bus, besides its record."""

    scale: int
    """Of its scale, or of its scores."""
    payload: int
    table: int = 0
    """What means and scales of the channels take, once in each packet."""


def conversion(
    dtype: Dtype,
    wanted: Quantization,
    already: Quantization = Quantization.NONE,
    kind: Kind = Kind.ACTIVATION,
) -> Quantization:
    """Return what is done while copying: `wanted`, or NONE when the payload is of that type already.

    What was converted before, on the host's device, stays as it is, and so does what is quantised. So do
    gradients: they are small differences that a format made for activations would swallow. Under BF16 so do
    two bytes an element: to convert float16 would lose bits and save no byte.
    """
    if kind is not Kind.ACTIVATION or already is not Quantization.NONE or dtype in _QUANTIZED:
        return Quantization.NONE
    if wanted is Quantization.BF16 and dtype.itemsize == 2:
        return Quantization.NONE
    return wanted


def row_bytes(
    width: int, dtype: Dtype, done: Quantization, *, by_channel: bool = False, scored: bool = False
) -> RowBytes:
    """Return the bytes that a row of `width` elements takes on the bus.

    Args:
        width: elements.
        dtype: of the captured packet.
        done: what is done to it.
        by_channel: whether it has a table of its channels already.
        scored: whether it has scores.
    """
    target = done.dtype or dtype
    if scored:
        return RowBytes(2 * _SCALE_BYTES, width * target.itemsize)
    if by_channel or done.by_channel:
        return RowBytes(0, width * target.itemsize, 2 * width * _SCALE_BYTES)
    return RowBytes(_SCALE_BYTES if target in _QUANTIZED else 0, width * target.itemsize)


def split_rows(sequence: int, rows: int, row: RowBytes, chunk_bytes: int) -> Iterator[Block]:
    """Split the `rows` of the captured packet `sequence` into the minimum number of similar-sized blocks.

    A ring's sequences begin at 1, so no mark is 0, which means "nothing yet".

    Raises:
        RowTooLargeError: a single row does not fit, or there are more blocks than a mark can number.
    """
    most = rows_that_fit(chunk_bytes, row.payload, row.scale, row.table)
    if most < 1:
        raise RowTooLargeError(
            f"a row of {row.payload + row.table} bytes does not fit a chunk of {chunk_bytes}"
        )
    count = -(-rows // most)
    if count > 1 << PART_BITS:
        raise RowTooLargeError(
            f"a packet of {rows} rows makes {count} blocks, a mark can number {1 << PART_BITS}"
        )
    for number in range(count):
        yield Block(
            start=number * rows // count,
            stop=(number + 1) * rows // count,
            source=(sequence << PART_BITS) | number,
        )
