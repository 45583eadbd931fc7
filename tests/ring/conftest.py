"""Small rings in memory, and packets whose content proves itself."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE, ActivationPacket, Dtype, parse_packet
from asysi_ring import Control, View, Writer, create

WIDTH = 16
NATIVE = Path(__file__).parents[2] / "native"


class Builder:
    """Compiles native programs, each once in a session, two at a time."""

    COMMON = (
        *("-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unknown-pragmas"),
        *("-ffp-contract=off", "-pthread", f"-I{NATIVE / 'include'}"),
    )

    def __init__(self, folder: Path, tool: Callable[[str], str]) -> None:
        self.folder = folder
        self.tool = tool

    def __call__(self, *programs: tuple[str, ...], compiler: str = "c++") -> list[Path]:
        """Compile programs, each given as its source under native/ and its own flags; return their paths."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda program: self._compile(compiler, *program), programs))

    def _compile(self, compiler: str, source: str, *flags: str) -> Path:
        digest = hashlib.sha256(" ".join((compiler, source, *flags)).encode()).hexdigest()[:12]
        to = self.folder / f"{Path(source).stem}-{digest}"
        if not to.exists():
            command = [self.tool(compiler), *self.COMMON, *flags, NATIVE / source, "-o", to]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stderr
        return to


@pytest.fixture(scope="session")
def build(tmp_path_factory, program) -> Builder:
    """Compile native programs."""
    return Builder(tmp_path_factory.mktemp("native"), program)


@dataclass
class Ring:
    """A ring for one test: 2 pins a reader, so depth = chunks - 2 × readers - 1."""

    folder: str

    def publish(
        self, writer: Writer, value: int, *, rows: int = 3, point: str = "layer.0", shard: int = 0, **header
    ):
        """Publish `rows` rows whose elements are all `value`, and whose tokens are too."""
        source = np.full((rows, WIDTH), value, np.float32)
        records = np.zeros(rows, ROW_DTYPE)
        records["token"] = value
        book_seen = header.pop("book_seen", True)
        head = np.zeros(1, HEADER_DTYPE)
        head["account"] = writer.account(point)
        head["width"] = WIDTH
        for name, number in header.items():
            head[name] = number
        return writer.publish_block(
            shard,
            head,
            records,
            source.ctypes.data,
            source.strides[0],
            None,
            rows,
            Dtype.FLOAT32,
            0,
            book_seen=book_seen,
        )

    def packet(self, view: View) -> ActivationPacket:
        """Parse a view."""
        with Control(self.folder) as control:
            return parse_packet(memoryview(view), control.accounts())

    def value(self, view: View) -> int:
        """Return what `publish` was given; every element and every record must say the same."""
        packet = self.packet(view)
        values = {*packet.payload.ravel().tolist(), *packet.rows["token"].tolist()}
        assert len(values) == 1
        return int(values.pop())

    def produced(self, account: int = 0) -> dict:
        """Return the producer's books of an account."""
        with Control(self.folder) as control:
            return control.produced()[account]

    def consumed(self, reader: str, account: int = 0) -> dict:
        """Return a reader's books of an account."""
        with Control(self.folder) as control:
            return control.consumed(reader)[account]

    def balance(self, *readers: str, settled: bool = True) -> None:
        """Check every equation of the ledger."""
        with Control(self.folder) as control:
            for index, made in enumerate(control.produced()):
                assert made["seen"] == made["published"] + made["sampled_out"] + sum(made["dropped"])
                for reader in readers:
                    used = control.consumed(reader)[index]
                    reached = made["published"] if settled else used["position"]
                    assert reached == used["durable"] + used["lapped"] + used["rolled_back"]


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder in memory, where the rings of a pod lie too."""
    home = tempfile.mkdtemp(prefix="asysi-ring-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def make_ring(folder: str) -> Callable[..., Ring]:
    """Create a ring of 1 shard × 10 chunks × 4 KiB for one reader "r", broadcast, unless told otherwise."""

    def make(**changes) -> Ring:
        shape = {
            "shards": 1,
            "chunks": 10,
            "chunk_bytes": 4096,
            "readers": ["r"],
            "policy": "overwrite",
            "pins": 2,
        }
        create(folder, **(shape | changes))
        return Ring(folder)

    return make
