"""Rows that are not finite are counted exactly, in the ring's control file."""

import uuid
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asysi.bus.mailbox import HookGauge
from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype
from asysi.bus.ring import CppShardedSPMCBus
from asysi.hook.finite import NonFiniteCounter, rows_not_finite
from asysi_ring import Control, Writer, create

SPECIAL = st.sampled_from([0.0, -0.0, 1.5, -3.0, 65504.0, np.nan, np.inf, -np.inf])
BLOCKS = arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=SPECIAL)


def packet(values, dtype, point="p"):
    """A packet of these float32 rows in another type."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["dtype"], header["rows"] = dtype, len(values)
    scales, payload = None, values
    if dtype is Dtype.BFLOAT16:
        payload = (values.view(np.uint32) >> 16).astype(np.uint16)
    elif dtype is Dtype.FLOAT16:
        payload = values.astype(np.float16)
    elif dtype is Dtype.INT8:
        scales, payload = np.abs(values).max(axis=1), np.ones(values.shape, np.int8)
    return ActivationPacket(header, point, np.zeros(len(values), ROW_DTYPE), scales, payload)


@given(BLOCKS, st.sampled_from([Dtype.FLOAT32, Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.INT8]))
def test_the_count_is_numpys(values, dtype):
    """In every type a row counts once if it holds NaN or infinity, whatever stands beside it."""
    assert rows_not_finite(packet(values, dtype)) == int((~np.isfinite(values).all(axis=1)).sum())


@pytest.fixture
def ring():
    folder = Path("/dev/shm") / f"asysi-test-{uuid.uuid4().hex}"
    create(str(folder), shards=1, chunks=4, chunk_bytes=4096, readers=["hook"], policy="drop_new")
    yield str(folder)
    rmtree(folder)


def test_a_restarted_hook_counts_on(ring):
    """The counts are the ring's: who takes over from a killed hook worker begins where it was."""
    bad = np.array([[1.0, np.nan], [1.0, 2.0], [np.inf, np.inf]], np.float32)
    with Writer(ring) as writer:
        assert [writer.account(name) for name in ("a", "b")] == [0, 1]
    for times in (1, 2, 3):
        with CppShardedSPMCBus(ring).consumer("hook") as captured, Control(ring) as control:
            counts = NonFiniteCounter(
                captured, dict(zip(control.accounts(), control.gauges("hook"), strict=True))
            )
            counts.observe(packet(bad, Dtype.FLOAT32, "b"))
            counts.observe(packet(bad[1:2], Dtype.FLOAT32, "a"))
            found = [int(row[HookGauge.NOT_FINITE]) for row in control.gauges("hook")]
        assert found == [0, 2 * times]
