"""Rows gathered on a device and converted there, with torch's operators, to what the ring makes on a CPU.

Elements, scales and counts equal those of `asysi.bus.quantization.quantise` bit for bit; only the sign of
a NaN may differ. For this, every division is one of tensors: torch multiplies by the reciprocal of a number.
"""

import math
from functools import cache

import torch

from asysi.bus.packet import NOT_FINITE, Dtype, Quantization

WIRE_DTYPES = {
    torch.float32: Dtype.FLOAT32,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.FLOAT16,
    torch.float8_e4m3fn: Dtype.FP8_E4M3,
    torch.int8: Dtype.INT8,
}
"""Types in which rows leave a device, as packets name them."""
CONVERSIONS = {
    torch.bfloat16: Quantization.BF16,
    torch.float8_e4m3fn: Quantization.FP8,
    torch.int8: Quantization.INT8_CHANNEL,
}
"""What made rows of this type out of rows of another one."""
_TINY = torch.finfo(torch.float32).tiny
_LARGEST_E4M3 = 448.0
_LINE = 64


def beside_bytes(element: torch.dtype, width: int) -> tuple[int, int]:
    """Return the bytes that a row, and those that a packet, needs in a chunk beside elements and records.

    For int8 by channel a row needs them only until its packet is committed: for the count of its values out
    of range, behind the packet, at the end of the chunk.
    """
    if element is torch.float8_e4m3fn:
        return 4, 0
    if element is torch.int8:
        return 4, 8 * width + _LINE
    return 0, 0


def select_rows(
    out: torch.Tensor,
    source: torch.Tensor,
    index: torch.Tensor,
    beside: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
) -> None:
    """Gather rows of `source` into `out`, converted to its type; everything rounds to nearest, ties to even.

    Args:
        out: [k, width] of a type in WIRE_DTYPES.
        source: [n, width] of a floating-point type.
        index: [k] rows of the source.
        beside: [k] float32 for the scales of fp8; int32 for the values of each row that int8 stores as the
            end of their channel's range.
        table: [2, width] float32 mean and scale of each channel, of int8.
    """
    if out.dtype == source.dtype:
        torch.index_select(source, 0, index, out=out)
        return
    rows = source.index_select(0, index)
    if out.dtype is torch.float8_e4m3fn:
        assert beside is not None
        _to_fp8(out, beside, rows)
    elif out.dtype is torch.int8:
        assert beside is not None
        assert table is not None
        _to_int8(out, beside, rows, table)
    else:
        out.copy_(rows)


def _to_fp8(out: torch.Tensor, scales: torch.Tensor, rows: torch.Tensor) -> None:
    finite = torch.nan_to_num(rows, 0.0, 0.0, 0.0)
    magnitude = torch.linalg.vector_norm(finite, math.inf, 1, dtype=torch.float32)
    torch.div(magnitude, _largest_e4m3(rows.device), out=scales)
    small = scales < _TINY
    scales.masked_fill_(small, 0.0)
    rows.nan_to_num_(math.nan, math.nan, math.nan)  # the cast may make 448 of an infinity
    out.copy_(rows / scales.masked_fill(small, math.inf)[:, None])


def _to_int8(out: torch.Tensor, outside: torch.Tensor, rows: torch.Tensor, table: torch.Tensor) -> None:
    finite = rows.abs() < math.inf
    wanted = (rows - table[0]).div_(table[1])
    beyond = (wanted.abs() >= 127.5).logical_and_(finite)
    torch.sum(beyond, 1, dtype=torch.int32, out=outside)
    wanted.clamp_(-127, 127).round_().masked_fill_(finite.logical_not_(), NOT_FINITE)
    out.copy_(wanted)


@cache
def _largest_e4m3(device: torch.device) -> torch.Tensor:
    return torch.full((1,), _LARGEST_E4M3, device=device)
