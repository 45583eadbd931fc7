"""Whoever shares a ring may write what he likes: nobody else crashes, hangs or reads outside.

`make ring-hostile` runs mutator and fuzzers for ten minutes each; ASYSI_RING_MUTATE_SECONDS and
ASYSI_RING_FUZZ_SECONDS say how long.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from asysi.contract.errors import ConfigError
from asysi.hosts.prepare import create_rings
from asysi_ring import (
    EndianError,
    GeometryError,
    Reader,
    SpaceError,
    TruncatedError,
    VersionError,
    Writer,
    control_layout,
    create,
)

MUTATE_SECONDS = os.environ.get("ASYSI_RING_MUTATE_SECONDS", "60")
FUZZ_SECONDS = os.environ.get("ASYSI_RING_FUZZ_SECONDS", "10")
# The first of them also compiles with sanitizers, which takes a while on a busy machine.
pytestmark = pytest.mark.timeout(600 + max(float(MUTATE_SECONDS), float(FUZZ_SECONDS)))

GUARDED = "-Wl,--wrap=mmap,--wrap=munmap"
SANITIZED = ("-g", "-fno-sanitize-recover=all", GUARDED)


@pytest.fixture(scope="module")
def mutator(build) -> Path:
    """The live mutator and those it works against."""
    flags = ("-fsanitize=address,undefined", "-Wno-maybe-uninitialized", *SANITIZED)
    return build(("tests/faults_mutate.cpp", *flags))[0]


@pytest.fixture(scope="module")
def fuzzers(build, program) -> dict[str, Path]:
    """Both fuzzers, and what writes their seeds."""
    program("/usr/lib/llvm-16/lib/clang/16/lib/linux")  # the sanitizers' runtime
    flags = ("-fsanitize=fuzzer,address,undefined", *SANITIZED)
    programs = build(
        ("fuzz/reader_fuzz.cpp", *flags),
        ("fuzz/writer_fuzz.cpp", *flags),
        ("fuzz/seeds.cpp", GUARDED),
        compiler="clang++-16",
    )
    return dict(zip(("reader", "writer", "seeds"), programs, strict=True))


@pytest.mark.long
def test_a_live_mutator_harms_nobody(mutator):
    """While one process scribbles over all of a ring, producer, readers and onlooker go on or are refused.

    Built with the address sanitizer, and with a forbidden page at both ends of each mapping. Whoever stands
    still for 30 s hangs.
    """
    ran = subprocess.run(
        [mutator, MUTATE_SECONDS, "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=float(MUTATE_SECONDS) + 120,
    )
    assert ran.returncode == 0, ran.stderr
    tally = json.loads(ran.stdout)
    assert tally["words written"] > 10_000
    for role in ("producer", "reader a", "reader b"):
        assert tally[role]["packets"] > 0
        assert tally[role]["refused by the ring"] > 0


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_no_input_breaks_a_participant(fuzzers, tmp_path, role):
    """A ring of arbitrary bytes is refused or lived with: no crash, no hang, nothing undefined."""
    seeds = tmp_path / "seeds"
    subprocess.run([fuzzers["seeds"], seeds], check=True)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    command = [fuzzers[role], f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", "-max_len=8192", "-seed=1"]
    command += ["-print_final_stats=1", f"-artifact_prefix={tmp_path}/", corpus, seeds]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=float(FUZZ_SECONDS) + 120
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    stats = dict(re.findall(r"^stat::(\w+): +(\d+)$", ran.stderr, re.MULTILINE))
    assert int(stats["number_of_executed_units"]) > 500
    assert int(stats["new_units_added"]) > 20


@pytest.mark.parametrize(("how", "code"), [("store", -signal.SIGSEGV), ("protect", 0)])
def test_a_reader_cannot_write_to_packets(make_ring, build, how, code):
    """Its mapping is read-only: a store kills who tries, and the kernel refuses to make it writable."""
    ring = make_ring()
    (program,) = build(("tests/faults_live.cpp", "-O2"))
    with Writer(ring.folder) as writer:
        ring.publish(writer, 7)
        ran = subprocess.run(
            [program, "scribble", ring.folder, how], capture_output=True, text=True, check=False, timeout=60
        )
        assert (ran.stdout, ran.returncode) == ("protected\n", code)
        with Reader(ring.folder, "r") as reader:
            (view,) = reader.pull()
            assert ring.value(view) == 7
            view.release()


def test_a_view_is_read_only_in_python(make_ring):
    """Neither its buffer nor an array over it can be written."""
    ring = make_ring()
    with Writer(ring.folder) as writer, Reader(ring.folder, "r") as reader:
        ring.publish(writer, 7)
        (view,) = reader.pull()
        with pytest.raises(TypeError, match="read-only"):
            memoryview(view)[0] = 1
        view.release()


SHAPE = {"shards": 1, "chunks": 40, "chunk_bytes": 65536, "readers": ["r"], "policy": "overwrite"}


@pytest.fixture
def small_tmpfs(tmp_path) -> Iterator[Path]:
    """A tmpfs of one MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def spoil(folder: Path, field: str, value: int) -> None:
    """Overwrite a field of the control file's header."""
    offset, size = next((at, size) for name, at, size in control_layout() if name == field)
    with Path(folder, "control").open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(size, "little"))


def truncate(folder: Path, name: str) -> None:
    """Cut a file of the ring in half."""
    path = folder / name
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "control truncated": (lambda folder: truncate(folder, "control"), TruncatedError),
    "data truncated": (lambda folder: truncate(folder, "data"), TruncatedError),
    "control empty": (lambda folder: os.truncate(folder / "control", 0), TruncatedError),
    "another version": (lambda folder: spoil(folder, "major", 99), VersionError),
    "a later minor version": (lambda folder: spoil(folder, "minor", 99), VersionError),
    "another byte order": (lambda folder: spoil(folder, "endian", 0x04030201), EndianError),
    "another magic": (lambda folder: spoil(folder, "magic", 1), VersionError),
    "more chunks than there are": (lambda folder: spoil(folder, "chunks", 41), GeometryError),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("attach", [Writer, lambda folder: Reader(folder, "r")], ids=["producer", "reader"])
def test_a_damaged_ring_is_refused_by_type(folder, damage, attach):
    """Whoever attaches learns by the error's type what is wrong, before a byte of it is used."""
    create(folder, **SHAPE)
    harm, error = DAMAGE[damage]
    harm(Path(folder))
    with pytest.raises(error):
        attach(folder)


def report(**changes) -> SimpleNamespace:
    """What prepare knows of one ring."""
    ring = SimpleNamespace(**{**SHAPE, "folder": "ring", "accounts": 4, "bytes": 0, **changes})
    return SimpleNamespace(rings=[ring])


def worker(shm) -> SimpleNamespace:
    """A worker of an HPC experiment."""
    return SimpleNamespace(shm=shm, experiment=SimpleNamespace(spec=SimpleNamespace(mode="HPC")))


@pytest.mark.parametrize("damage", ["another version", "another byte order", "control truncated"])
def test_prepare_refuses_a_ring_that_it_cannot_use(tmp_path, damage, monkeypatch):
    """Its error is one of configuration, which is exit code 2: a retry would not help."""
    monkeypatch.setattr("asysi.hosts.prepare.missing_bytes", lambda *_: 0)
    create(str(tmp_path / "ring"), **SHAPE)
    DAMAGE[damage][0](tmp_path / "ring")
    with pytest.raises(ConfigError, match="cannot be created"):
        create_rings(worker(tmp_path), report())


def test_prepare_refuses_a_short_tmpfs(small_tmpfs, monkeypatch):
    """A ring that does not fit is refused before a byte of it is written, not when a page is touched."""
    monkeypatch.setattr("asysi.hosts.prepare.missing_bytes", lambda *_: 0)
    with pytest.raises(ConfigError, match=r"needs \d+ bytes.*available") as refusal:
        create_rings(worker(small_tmpfs), report())
    assert isinstance(refusal.value.__cause__.__cause__, SpaceError)
    assert list((small_tmpfs / "ring").iterdir()) == []


def test_a_full_tmpfs_leaves_nothing_half_made(small_tmpfs):
    """Room that goes away between the check and the allocation: the same error, and no file stays."""
    shape = SHAPE | {"chunk_bytes": 4096, "chunks": 60}
    others = shutil.disk_usage(small_tmpfs).free - 60 * 4096 - 4096
    (small_tmpfs / "others").write_bytes(bytes(others))
    with pytest.raises(SpaceError, match="bytes available"):
        create(str(small_tmpfs / "ring"), **shape)
    assert list((small_tmpfs / "ring").iterdir()) == []


def test_a_scribbled_packet_is_no_crash_in_python(make_ring):
    """Parsing whatever bytes a packet has raises ValueError, or gives a packet; the interpreter lives."""
    ring = make_ring()
    code = _SCRIBBLE.format(folder=ring.folder)
    with Writer(ring.folder) as writer:
        for value in range(5):
            ring.publish(writer, value)
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )
    assert ran.returncode == 0, ran.stderr
    parsed, refused = map(int, ran.stdout.split())
    assert parsed > 0
    assert refused > 0


_SCRIBBLE = """
import mmap, random
from asysi.bus.packet import parse_packet
from asysi_ring import Reader, RevokedError
dice = random.Random(1)
parsed = refused = 0
with Reader({folder!r}, "r") as reader, open({folder!r} + "/data", "r+b") as file:
    data = mmap.mmap(file.fileno(), 0)
    (view, *_) = reader.pull()
    at = next(i for i in range(0, len(data), 4096) if data[i:i + 192] == bytes(memoryview(view)[:192]))
    good = data[at:at + 4096]
    for _ in range(20000):
        place = at + dice.randrange(192)
        data[place] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        try:
            packet = parse_packet(memoryview(view), ["layer.0"])
            packet.payload.sum()
            parsed += 1
        except (ValueError, IndexError, KeyError):
            refused += 1
        packet = None
        if dice.random() < 0.5:
            data[at:at + 4096] = good
    view.release()
print(parsed, refused)
"""
