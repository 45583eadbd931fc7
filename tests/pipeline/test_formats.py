"""Files as people have them: strict CSV, JSON lines that are something else, compressed and cut off."""

import base64
import bz2
import gzip
import json
import lzma
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from asysi.cli import main
from asysi.contract.errors import ConfigError
from asysi.pipeline import RowError, StreamFactory, UnifiedPipeline
from asysi.pipeline.formats.compression import BrokenFileError, decompressed
from asysi.pipeline.formats.uris import location, split_options, with_format


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(items):
    return [dict(item) for item in items]


def through(source: str, out: str = "jsonl://out.jsonl", name: str = "p", **more: Any) -> Any:
    return UnifiedPipeline([keep], source, out, **more).create(name).run()


def read(uri: str = "jsonl://out.jsonl") -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "_i"} for row in StreamFactory.create(uri).get_reader()]


def letters(name: str = "p") -> list[dict[str, Any]]:
    files = Path(f"tmp/{name}/dead_letters").glob("*")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"n": n, "text": "word " * 9}).encode() + b"\n" for n in range(count))


def command(verb: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["pipeline", verb, *arguments, "--plain"])
    return int(ended.value.code or 0)


# CSV -----------------------------------------------------------------------------------------------------


def test_csv_fields_of_any_length_are_read() -> None:
    """A field of several MiB, in quotes and without, is read whole."""
    long = "x" * (3 << 20)
    Path("in.csv").write_text(f'a,b\n{long},"{long}\n{long}"\n1,2\n')
    through("csv://in.csv")
    assert read() == [{"a": long, "b": f"{long}\n{long}"}, {"a": "1", "b": "2"}]


BAD = {
    "too many": (b"1,2,3\n", "line 3: 3 fields, the first line names 2"),
    "too few": (b"1\n", "line 3: 1 field, the first line names 2"),
    "not text": (b"1,M\xfcller\n", "line 3: byte 0xfc at 3 is not utf-8"),
    "behind a quote": (b'1,"a"b\n', "line 3: ',' expected after '\"'"),
    "open quote": (b'1,"a\n', "line 3: a quote is opened and never closed"),
    "carriage return": (b"1,a\rb\n", "line 3: a carriage return within a field without quotes"),
    "several lines": (b'1,"a\nb",2\n', "line 3: 3 fields, the first line names 2"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_csv_line_that_does_not_fit_is_a_dead_letter_with_its_bytes(kind: str) -> None:
    """Each line that does not fit fails alone, with file, line and bytes; no other line is lost or merged."""
    bad, why = BAD[kind]
    Path("in.csv").write_bytes(b"a,b\n0,x\n" + bad + b"1,y\n2,z\n")
    report = through("csv://in.csv", on_error="dead_letter")
    assert read() == [{"a": "0", "b": "x"}, {"a": "1", "b": "y"}, {"a": "2", "b": "z"}]
    assert report.dead == 1
    letter = letters()[0]
    assert (letter["reason"], letter["row"]) == ("BadLineError", 1)
    assert f"in.csv, {why}" in letter["error"]
    data = base64.b64decode(letter["line_base64"]) if "line_base64" in letter else letter["line"].encode()
    assert data == bad
    with pytest.raises(RowError, match=r"BadLineError: .*in\.csv, line 3"):
        through("csv://in.csv", "jsonl://again.jsonl", name="q")


@given(st.lists(st.sampled_from([*(bad for bad, _ in BAD.values()), b"1,y\n", b'2,"z\nz"\n']), max_size=12))
def test_no_csv_line_vanishes(tmp_path_factory, parts: list[bytes]) -> None:
    """Rows and dead letters together are the file: every byte is in one of them, in its order."""
    from asysi.pipeline.formats.csv_rows import Dialect, csv_lines

    text = b"".join(parts)
    found = [
        json.loads(line) for line in b"".join(csv_lines(iter([b"a,b\n", text]), "f", Dialect())).splitlines()
    ]
    rest = text
    for row in found:
        if isinstance(row, list):
            data = base64.b64decode(row[2])
        else:
            a, b = row["a"], row["b"]
            written = f'{a},"{b}"\n' if "\n" in b or rest.startswith(f'{a},"'.encode()) else f"{a},{b}\n"
            data = written.encode()
        assert rest.startswith(data)
        rest = rest[len(data) :]
    assert rest == b""


def test_a_redrive_leaves_bad_lines_dead() -> None:
    """A line that is not a row stays a dead letter, even if its bytes happen to be JSON."""
    Path("in.csv").write_bytes(b"a,b\n1,2\n{}\n3,4\n")
    through("csv://in.csv", on_error="dead_letter")
    report = UnifiedPipeline([keep], "csv://in.csv", "jsonl://out.jsonl").redrive("p")
    assert report.dead == 1
    assert [row["a"] for row in read()] == ["1", "3"]


def test_csv_delimiter_encoding_and_quote_are_options() -> None:
    """Options behind a # read and write other dialects; a .tsv has tabs without them."""
    Path("in.csv").write_bytes("name;text\nJürgen;a,b\n".encode("cp1252"))
    through("csv://in.csv#delimiter=semicolon&encoding=cp1252", "csv://out.tsv")
    assert Path("out.tsv").read_text() == "name\ttext\t_i\nJürgen\ta,b\t0\n"
    through("out.tsv", "csv://wide.csv#encoding=utf-16&delimiter=|", name="q")
    assert Path("wide.csv").read_bytes().decode("utf-16") == "name|text|_i\nJürgen|a,b|0\n"
    through("csv://wide.csv#encoding=utf-16&delimiter=pipe", name="r")
    assert read() == [{"name": "Jürgen", "text": "a,b"}]
    Path("raw.csv").write_text('a,b\n"x,y"z\n')
    through("csv://raw.csv#quote=none", "jsonl://raw.jsonl", name="s")
    assert read("jsonl://raw.jsonl") == [{"a": '"x', "b": 'y"z'}]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("separator=;", "has no option 'separator': it has delimiter, encoding, quote"),
        ("delimiter=ab", "give one character, or comma, tab"),
        ("encoding=klingon", "unknown encoding: klingon"),
        ("quote=,", "give one character other than ','"),
    ],
)
def test_csv_options_that_cannot_be_are_refused(options: str, why: str) -> None:
    """An option that does not exist, or a value that it cannot have, is refused with what there is."""
    with pytest.raises(ConfigError, match=why):
        StreamFactory.create(f"csv://in.csv#{options}")


def test_csv_with_another_delimiter_says_so() -> None:
    """One column whose name has semicolons is refused with the option that reads them."""
    Path("in.csv").write_text("a;b\n1;2\n")
    with pytest.raises(ConfigError, match="#delimiter=semicolon, or #delimiter=comma if that is meant"):
        through("csv://in.csv")
    through("csv://in.csv#delimiter=comma", "jsonl://one.jsonl", name="q")
    assert read("jsonl://one.jsonl") == [{"a;b": "1;2"}]


def test_csv_in_an_encoding_that_cannot_hold_a_value_is_refused() -> None:
    """A character that the output's encoding does not have is refused, not replaced."""
    Path("in.jsonl").write_text('{"a": "Ω"}\n')
    with pytest.raises(ConfigError, match="'Ω' cannot be written in cp1252"):
        through("jsonl://in.jsonl", "csv://out.csv#encoding=cp1252")


# JSON lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_part_of_the_first_row(pack: Any) -> None:
    """Files with a byte order mark, plain or compressed, are read as those without, and resumed exactly."""
    for name in ("a", "b"):
        Path(f"{name}.jsonl").write_bytes(pack(b"\xef\xbb\xbf" + lines(3)))
    through("jsonl://[ab].jsonl")
    assert [row["n"] for row in read()] == [0, 1, 2, 0, 1, 2]


OTHER = {
    "array": (b'[\n  {"n": 1},\n  {"n": 2}\n]\n', "one JSON array.*jq -c"),
    "one array": (b'[{"n": 1}, {"n": 2}]', "one JSON array.*jq -c"),
    "pretty": (b'{\n  "n": 1\n}\n{\n  "n": 2\n}\n', "spread over several lines.*jq -c ."),
    "tsv": (b"a\tb\n1\t2\n", "looks like TSV: read it as csv://.*#delimiter=tab"),
    "csv": (b"a,b\n1,2\n", "looks like CSV: read it as csv://"),
    "text": (b"Once upon a time\nthere was a row.\n", "is text, not a JSON object.*jq -cR"),
    "parquet": (b"PAR1xxxx", "is a Parquet file: read it as parquet://"),
    "utf-16": ('{"n": 1}\n'.encode("utf-16"), "is UTF-16: make it UTF-8"),
}


@pytest.mark.parametrize("pack", [bytes, zstandard.compress])
@pytest.mark.parametrize("kind", OTHER)
def test_what_is_no_json_lines_says_what_to_do(kind: str, pack: Any) -> None:
    """An array, a table, text and others are refused before anything runs, with the command that helps."""
    data, why = OTHER[kind]
    Path("in.jsonl").write_bytes(pack(data))
    with pytest.raises(ConfigError, match=why):
        through("jsonl://in.jsonl", on_error="dead_letter")


def test_a_folder_says_how_to_name_its_files() -> None:
    """A folder is refused with the pattern of its files."""
    Path("in").mkdir()
    with pytest.raises(
        ConfigError, match=r"jsonl://in is a folder: name its files, like jsonl://in/\*\.jsonl"
    ):
        through("jsonl://in")


def test_bad_rows_among_good_ones_fail_alone() -> None:
    """A file with rows is read, whatever its other lines are: arrays and broken lines are dead letters."""
    Path("in.jsonl").write_bytes(b'[1, 2]\n{"n": 0}\nnonsense\n\xff\n{"n": 1}\n')
    assert through("jsonl://in.jsonl", on_error="dead_letter").dead == 3
    assert read() == [{"n": 0}, {"n": 1}]
    assert base64.b64decode(next(one["line_base64"] for one in letters() if "line_base64" in one)) == b"\xff"


def _zip(data: bytes) -> bytes:
    with zipfile.ZipFile("t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", data)
    return Path("t.zip").read_bytes()


PACKS = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}


def test_compression_is_seen_by_content_not_by_name() -> None:
    """Files of one pattern may be compressed in different ways, plain, or named wrongly."""
    packs = [bytes, *PACKS.values(), _zip]
    for number, pack in enumerate(packs):
        Path(f"{number}.jsonl{'.gz' if number == 0 else ''}").write_bytes(pack(lines(2)))
    through("jsonl://[0-9].jsonl*")
    assert [row["n"] for row in read()] == [0, 1] * len(packs)


@given(st.binary(max_size=300), st.sampled_from(sorted(PACKS)), st.integers(1, 3))
def test_archives_of_several_members_are_read_whole(data: bytes, kind: str, members: int) -> None:
    """What was compressed in several parts, one behind the other, is all of them."""
    import io

    packed = PACKS[kind](data) * members
    names = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "xz": "xz"}
    assert b"".join(decompressed(io.BytesIO(packed), names[kind], "f")) == data * members
    for cut in range(1, len(packed), max(1, len(packed) // 7)):
        if members == 1:
            with pytest.raises(BrokenFileError, match=r"f (ends too early|is damaged)"):
                b"".join(decompressed(io.BytesIO(packed[:cut]), names[kind], "f"))


@pytest.mark.parametrize("ending", ["gz", "zst", "xz", "bz2"])
def test_a_cut_archive_names_file_offset_and_rows_and_resumes(ending: str, capsys: Any) -> None:
    """Rows before the cut are kept and counted; with the whole file a resume makes the whole output."""
    chance = random.Random(0)
    data = b"".join(
        json.dumps({"n": n, "x": chance.getrandbits(4000).to_bytes(500, "big").hex()}).encode() + b"\n"
        for n in range(4000)
    )
    whole = PACKS[ending](data)
    file = Path(f"in.jsonl.{ending}")
    file.write_bytes(whole[: len(whole) * 2 // 3])
    Path("p.yaml").write_text(
        f"pipelineId: p\ninputUri: jsonl://{file}\noutputUri: jsonl://out.jsonl\n"
        "operators: [{operator: filter, params: {where: 'n >= 0'}}]\n"
    )
    assert command("run", "p.yaml") == 2
    said = capsys.readouterr().err
    kept = len(Path("out.jsonl").read_bytes().splitlines())
    assert kept > 1000
    assert (
        f"{file.name} ends too early, at byte {len(whole) * 2 // 3:,}: the {kept:,} rows before it are kept"
        in said
    )
    assert "Aborted" not in said
    file.write_bytes(whole)
    assert command("resume", "p.yaml", "--accept-changes") == 0
    assert [row["n"] for row in read()] == list(range(4000))


@pytest.mark.parametrize("out", ["out.jsonl.gz", "out.jsonl.zst", "out.csv.gz"])
def test_compressed_outputs_are_the_same_each_time(out: str) -> None:
    """gz and zst are written when their node is done, sealed, and byte for byte the same each time."""
    Path("in.jsonl").write_bytes(lines(50))
    through("in.jsonl", out)
    first = Path(out).read_bytes()
    assert StreamFactory.create(out).verify().rows == 50
    assert [int(row["n"]) for row in read(out)] == list(range(50))
    UnifiedPipeline([keep], "in.jsonl", out).create("p", overwrite=True).run()
    assert Path(out).read_bytes() == first
    for name in ("rows.jsonl.zip", "rows.parquet.gz"):
        with pytest.raises(ConfigError, match="cannot be written"):
            through("in.jsonl", name, name="q")


# URIs ----------------------------------------------------------------------------------------------------


def test_a_uri_without_a_format_has_that_of_its_ending() -> None:
    """Paths and URLs of stores are what their endings say, compressed or not; others must be told."""
    known = ("jsonl", "csv", "parquet", "memory", "oss2")
    assert with_format("a.csv.gz", known) == "csv://a.csv.gz"
    assert with_format("s3://b/a.parquet", known) == "parquet://s3://b/a.parquet"
    assert with_format("hf://datasets/o/n/train.jsonl", known) == "jsonl://hf://datasets/o/n/train.jsonl"
    assert with_format("a.tsv#quote=none", known) == "csv://a.tsv#quote=none"
    assert with_format("oss2://x", known) == "oss2://x"
    assert with_format("rows", known) == "jsonl://rows"
    with pytest.raises(ConfigError, match=r"write one of jsonl://s3://b/a, csv://"):
        with_format("s3://b/a", known)
    assert split_options("a#1.csv", ("delimiter",), "u") == ("a#1.csv", {})
    assert split_options("a.csv#delimiter=%23", ("delimiter",), "u") == ("a.csv", {"delimiter": "#"})
    assert location("csv://s3://b/a.csv#delimiter=;") == "s3://b/a.csv"
    assert location("jsonl://a#b=c.jsonl") == "a#b=c.jsonl"
