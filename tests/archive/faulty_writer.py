"""Writes an archive until the storage fails; says on standard output which packets were acknowledged."""

import sys
from pathlib import Path

import numpy as np
from tests.packets import packet_of

from asysi.archive.errors import MScanError
from asysi.archive.measure import measure
from asysi.archive.series import Series
from asysi.archive.writer import MScanWriter, SeqInfo

ROWS, WIDTH = 40, 16


def packet(sequence, point="a"):
    """A packet drawn from its sequence number."""
    return packet_of(
        np.random.default_rng(sequence).standard_normal((ROWS, WIDTH)).astype("<f4"), sequence, point
    )


def series(folder, packets, compression):
    """Append packets to rotating segments; after each flush or close, say up to where all is durable."""
    out = Series(Path(folder), 0, {}, rotate=20_000, compression=compression, budget=200_000)
    for sequence in range(packets):
        out.append(packet(sequence))
        if out.full:
            out.close()
        elif sequence % 3 == 0:
            out.flush()
        else:
            continue
        print(sequence, flush=True)
    out.close()
    print(packets - 1, flush=True)


def single(path):
    """Append for ever to one segment; flush and acknowledge each packet."""
    writer = MScanWriter(path, {}, chunk_bytes=2000)
    for sequence in range(10_000_000):
        one = packet(sequence)
        writer.append_records(measure(one), SeqInfo("a", 0, sequence, sequence, WIDTH))
        writer.append_tensor(one)
        writer.flush()
        print(sequence, flush=True)


if __name__ == "__main__":
    try:
        if len(sys.argv) == 2:
            single(Path(sys.argv[1]))
        else:
            series(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    except (OSError, MScanError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
