"""Where everything lies that processes share, for each version of the ABI that there was.

`tests/ring/abi/<version>.json` is what native/tests/layout.cpp printed when the version was made. A change
of layout needs a new version (abi_major or abi_minor in layout.hpp) and `make ring-abi`, which writes the
file of a version once and never again.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE

NATIVE = Path(__file__).parents[2] / "native"
ABI = Path(__file__).parent / "abi"


@pytest.fixture(scope="module")
def layout(build) -> dict:
    """What the headers say today."""
    (program,) = build(("tests/layout.cpp",))
    return json.loads(subprocess.run([program], capture_output=True, check=True).stdout)


def moved(known: dict, found: dict) -> list[str]:
    """Name every field that is not where it was, came, or went."""
    fields = {
        (structure, field)
        for layout in (known, found)
        for structure, places in layout["structures"].items()
        for field in places
    }

    def place(layout: dict, structure: str, field: str) -> object:
        return layout["structures"].get(structure, {}).get(field)

    return sorted(f"{s}.{f}" for s, f in fields if place(known, s, f) != place(found, s, f))


def test_the_layout_is_that_of_its_version(layout):
    """Nothing that is shared has moved since the version was made; a change needs a new one."""
    file = ABI / f"{layout['abi']}.json"
    assert file.exists(), f"ABI {layout['abi']} is new: run `make ring-abi` and commit {file.name}"
    assert moved(json.loads(file.read_text()), layout) == []


def test_a_moved_field_is_noticed(layout):
    """The comparison names a field that moved, one that came and one that went."""
    other = json.loads(json.dumps(layout))
    other["structures"]["ShardEntry"]["source"][0] += 8
    other["structures"]["Live"]["more"] = [72, 4]
    del other["structures"]["Intent"]["rows"]
    assert moved(layout, other) == ["Intent.rows", "Live.more", "ShardEntry.source"]


def test_no_shared_field_is_left_out(layout):
    """Every member of every structure in the headers is listed."""
    source = "".join(
        (NATIVE / "include" / "asysi" / name).read_text() for name in ("layout.hpp", "packet.hpp")
    )
    member = re.compile(r"^    (?! )(?:alignas\(\d+\) )?[\w:<>, ]+ (\w+)(?:\[\w+\])*;", re.MULTILINE)
    checked = 0
    for name, places in layout["structures"].items():
        body = re.search(
            rf"^struct {re.escape(name.split('<')[0])} \{{\n(.*?)^\}};", source, re.MULTILINE | re.DOTALL
        )
        if body is None:
            assert name in {"counters", "books", "sections", "words"}, name
            continue
        assert set(member.findall(body[1])) == set(places) - {"sizeof"}, name
        checked += 1
    assert checked > 8


@pytest.mark.parametrize(("structure", "dtype"), [("PacketHeader", HEADER_DTYPE), ("RowRecord", ROW_DTYPE)])
def test_numpy_describes_the_same_bytes(layout, structure, dtype):
    """Header and row record have the same fields at the same places in numpy and in C++."""
    described = {
        name: [offset, field.itemsize]
        for name, (field, offset, *_) in ((name, dtype.fields[name]) for name in dtype.names)
    }
    assert described | {"sizeof": dtype.itemsize} == layout["structures"][structure]
