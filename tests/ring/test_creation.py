"""Creating a ring, and meeting one that is not as expected."""

import subprocess
from pathlib import Path

import pytest

from asysi_ring import (
    Control,
    EndianError,
    GeometryError,
    Reader,
    SpaceError,
    TruncatedError,
    VersionError,
    Writer,
    control_layout,
    create,
    required_bytes,
)

SHAPE = {
    "shards": 2,
    "chunks": 40,
    "chunk_bytes": 4096,
    "readers": ["sae", "archiver"],
    "policy": "overwrite",
}


def poke(folder, field, value):
    """Overwrite a field of the control file's header."""
    offset, size = next((offset, size) for name, offset, size in control_layout() if name == field)
    with Path(folder, "control").open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(size, "little"))


def test_creating_the_same_ring_again_changes_nothing(folder):
    """The second creation returns False, and what was published stays."""
    assert create(folder, **SHAPE)
    with Writer(folder) as writer:
        writer.account("layer.0")
    assert not create(folder, **SHAPE)
    with Control(folder) as control:
        assert control.accounts() == ["layer.0"]
        assert control.readers() == ["sae", "archiver"]


def test_geometry_is_what_was_asked_for(folder):
    """Depth is what the readers' pins leave, and the files have the bytes announced."""
    create(folder, **SHAPE)
    with Control(folder) as control:
        geometry = control.geometry()
    assert geometry["depth"] == 40 - 2 * 16 - 1
    assert {
        key: geometry[key]
        for key in ("shards", "chunks", "chunk_bytes", "policy", "pins", "abi", "generation")
    } == {
        "shards": 2,
        "chunks": 40,
        "chunk_bytes": 4096,
        "policy": "overwrite",
        "pins": 16,
        "abi": "3.2",
        "generation": 0,
    }
    files = {path.name: path.stat() for path in Path(folder).iterdir()}
    assert set(files) == {"control", "data"}
    assert files["data"].st_size == 2 * 40 * 4096
    assert sum(facts.st_size for facts in files.values()) <= required_bytes(
        shards=2, chunks=40, chunk_bytes=4096
    )
    assert files["data"].st_blocks * 512 >= files["data"].st_size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunks": 33}, "leave no depth"),
        ({"shards": 0}, "shards = 0"),
        ({"chunk_bytes": 1000}, "not a multiple of 64"),
        ({"readers": []}, "readers = 0"),
        ({"readers": ["a", "a"]}, "two readers are named a"),
        ({"readers": ["a", "b"], "policy": "drop_new"}, "drop_new serves one reader"),
        ({"policy": "keep"}, "policy keep"),
        ({"readers": ["x" * 64]}, "1 to 63 bytes"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(folder, change, named):
    """The message names what is wrong, and nothing is left behind."""
    with pytest.raises(GeometryError, match=named):
        create(folder, **(SHAPE | change))
    assert list(Path(folder).iterdir()) == []


def test_another_geometry_is_refused_naming_both(folder):
    """What stands there is described, what was wanted too."""
    create(folder, **SHAPE)
    with pytest.raises(GeometryError, match=r"40 chunks x 4096 bytes.*wanted was 2 shards x 50 chunks"):
        create(folder, **(SHAPE | {"chunks": 50}))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("magic", 0x1234, "magic 0x1234"),
        ("major", 1, r"version 1\.2, this build reads version 3\.2"),
        ("major", 2, r"version 2\.2, this build reads version 3\.2: every worker of an experiment needs the"),
        ("minor", 3, r"version 3\.3, this build reads version 3\.2"),
        ("packet_header_bytes", 128, "headers of 1160 and 128"),
    ],
)
@pytest.mark.parametrize(
    "attach", [Writer, Control, lambda folder: Reader(folder, "sae"), lambda folder: create(folder, **SHAPE)]
)
def test_a_ring_of_another_build_is_refused_naming_both(folder, field, value, named, attach):
    """Whoever attaches is told what was found and what was expected."""
    create(folder, **SHAPE)
    poke(folder, field, value)
    with pytest.raises(VersionError, match=named):
        attach(folder)


def test_a_ring_of_another_byte_order_is_refused(folder):
    """A control file from a machine with the other endianness is an EndianError, its magic swapped or not."""
    create(folder, **SHAPE)
    poke(folder, "endian", 0x04030201)
    with pytest.raises(EndianError, match="another byte order"):
        Control(folder)
    poke(folder, "magic", int.from_bytes(b"ASSIRING", "big"))
    with pytest.raises(EndianError, match="does not leave its machine"):
        Control(folder)
    assert issubclass(EndianError, VersionError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shards", 3),
        ("chunks", 60000),
        ("chunk_bytes", 8192),
        ("readers", 999),
        ("accounts", 1),
        ("policy", 7),
    ],
)
def test_a_header_that_contradicts_the_file_is_refused(folder, field, value):
    """No bound is taken from a header that does not fit the file's size."""
    create(folder, **SHAPE)
    poke(folder, field, value)
    with pytest.raises(GeometryError):
        Writer(folder)


def test_a_truncated_ring_is_refused(folder):
    """Neither half of a control file nor half of the data is mapped: the error names both sizes."""
    create(folder, **SHAPE)
    data = Path(folder, "data")
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2)
    for attach in (Writer, lambda folder: Reader(folder, "sae")):
        with pytest.raises(TruncatedError, match=r"data has 163840 bytes, its geometry asks for 327680"):
            attach(folder)
    control = Path(folder, "control")
    whole = control.read_bytes()
    for bytes_left in (4, len(whole) // 2):
        control.write_bytes(whole[:bytes_left])
        with pytest.raises(TruncatedError, match=f"control has {bytes_left} bytes"):
            Writer(folder)


def test_a_missing_ring_is_a_missing_file(folder):
    """Attaching where nothing was created raises FileNotFoundError."""
    for attach in (Writer, Control, lambda folder: Reader(folder, "sae")):
        with pytest.raises(FileNotFoundError, match=folder):
            attach(folder)


def test_a_reader_without_a_place_is_refused_naming_those_with_one(folder):
    """The readers are fixed when the ring is created."""
    create(folder, **SHAPE)
    with pytest.raises(ValueError, match=r"no reader finish.*sae, archiver"):
        Reader(folder, "finish")


@pytest.fixture
def tiny(tmp_path):
    """A file system of one MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    yield str(tmp_path)
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_ring_larger_than_the_file_system_is_refused_before_it_is_touched(tiny):
    """SpaceError names needed and available bytes; later a smaller ring fits."""
    with pytest.raises(SpaceError, match=r"needs \d+ bytes.* 1048576 bytes available"):
        create(tiny, **(SHAPE | {"chunk_bytes": 65536}))
    assert list(Path(tiny).iterdir()) == []
    assert create(tiny, **(SHAPE | {"accounts": 8}))


def test_half_a_creation_is_never_seen(folder):
    """What a killed creator left is cleared away, and the ring is whole."""
    for name in ("control.new", "data.new", "data"):
        Path(folder, name).write_bytes(b"left behind")
    assert create(folder, **SHAPE)
    assert {path.name for path in Path(folder).iterdir()} == {"control", "data"}
    Writer(folder).close()
