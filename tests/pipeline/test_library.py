"""Operators that come with the pipeline: templates, choices, extraction, duplicates."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.pipeline import BaseOperator, RowError, UnifiedPipeline
from asysi.pipeline.library import duplicates
from asysi.pipeline.library.duplicates import Digests
from asysi.pipeline.library.extract import ExtractError
from asysi.pipeline.operators.registry import NAMES, make_operator


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(operators: list[Any], rows: list[dict[str, Any]], **settings_: Any) -> list[dict[str, Any]]:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = UnifiedPipeline(operators, "jsonl://in.jsonl", "jsonl://out.jsonl", **settings_)
    made.create("p", overwrite=True).run()
    return read()


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


WITH_PARAMS = {
    "chat": {"model": "m", "prompt": "{{ text }}", "baseUrl": "http://localhost:1/v1", "maxTries": None},
    "deduplicate": {"fields": ["text"]},
    "extract": {"schema": {"type": "object"}, "onInvalid": "drop"},
    "filter": {"where": "n > 1"},
    "near-deduplicate": {"threshold": 0.7},
    "sample": {"share": 0.5, "seed": 3},
    "template": {"fields": {"prompt": "Say {{ text }}"}},
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_named_operator_is_made_from_a_spec(name: str) -> None:
    """Each name stands for an operator, whose params a spec may write in its own style."""
    params = {key: value for key, value in WITH_PARAMS[name].items() if value is not None}
    operator = make_operator(name, params)
    assert isinstance(operator, BaseOperator)
    assert make_operator(name, operator.params()).params() == operator.params()


def test_templates_fill_fields_and_a_missing_one_is_an_error() -> None:
    """Templates see the row as it came; what they ask for must be there."""
    fields = {"prompt": "Say {{ text | upper }}", "n": "{{ n + 1 }}"}
    (row,) = run([make_operator("template", {"fields": fields})], [{"text": "a", "n": 1}])
    assert row == {"text": "a", "n": "2", "prompt": "Say A", "_i": 0}
    (row,) = run([make_operator("template", {"fields": fields, "keep": False})], [{"text": "a", "n": 1}])
    assert row == {"prompt": "Say A", "n": "2", "_i": 0}
    with pytest.raises(RowError, match="UndefinedError: 'n' is undefined"):
        run([make_operator("template", {"fields": fields})], [{"text": "a"}])
    with pytest.raises(ConfigError, match="line 1: unexpected"):
        make_operator("template", {"fields": {"p": "{{ text"}})


def test_templates_reach_nothing_outside_the_row() -> None:
    """A template from a spec is sandboxed."""
    for text in ("{{ text.__class__.__mro__ }}", "{{ tags.append(1) }}"):
        with pytest.raises(RowError, match="SecurityError"):
            run([make_operator("template", {"fields": {"p": text}})], [{"text": "a", "tags": []}])


def test_a_filter_keeps_what_its_expression_holds_for() -> None:
    """Filter takes an expression over the row's fields; an unknown field is an error, not False."""
    rows = [{"n": n, "lang": "en" if n % 2 else "de"} for n in range(8)]
    kept = run([make_operator("filter", {"where": 'n > 2 and lang == "en"'})], rows)
    assert [row["n"] for row in kept] == [3, 5, 7]
    with pytest.raises(RowError, match="UndefinedError"):
        run([make_operator("filter", {"where": "score"})], rows)
    with pytest.raises(ConfigError, match="expression"):
        make_operator("filter", {"where": "n >"})


def test_a_sample_depends_on_its_seed_and_the_ids_alone() -> None:
    """The same rows are kept whatever the threads, batches and blocks; another seed keeps others."""
    rows = [{"n": n} for n in range(3000)]
    kept = run([make_operator("sample", {"share": 0.2, "seed": 5})], rows)
    assert 480 < len(kept) < 720
    again = run([make_operator("sample", {"share": 0.2, "seed": 5})], rows, parallel_size=3, batch_size=7)
    assert again == kept
    assert run([make_operator("sample", {"share": 0.2, "seed": 6})], rows) != kept
    more = run([make_operator("sample", {"share": 0.3, "seed": 5})], rows)
    assert {row["n"] for row in kept} < {row["n"] for row in more}
    assert run([make_operator("sample", {"share": 1})], rows) == [{**row, "_i": row["n"]} for row in rows]
    with pytest.raises(ConfigError, match="share is 2"):
        make_operator("sample", {"share": 2})


def test_a_sample_by_a_field_keeps_equal_rows_together() -> None:
    """With `field`, rows that are equal there share one fate."""
    rows = [{"user": n % 50} for n in range(500)]
    kept = run([make_operator("sample", {"share": 0.4, "field": "user"})], rows)
    users = {row["user"] for row in kept}
    assert 5 < len(users) < 40
    assert len(kept) == 10 * len(users)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure!\n```json\n{"a": 1, "b": ["x"]}\n```\nAnything else?', {"a": 1, "b": ["x"]}),
        ('```\n{"a": 1}\n```', {"a": 1}),
        ('The answer is {"a": 7}.', {"a": 7}),
        ("{'a': 1, b: ['x', 'y',],}", {"a": 1, "b": ["x", "y"]}),
        ('{"a": "3"}', {"a": 3}),
        ('{"a": 1, "b": ["x", "y"', {"a": 1, "b": ["x", "y"]}),
        ('a set {x} and then {"a": 4}', {"a": 4}),
        ('// as asked\n{"a": 5, // five\n "b": []}', {"a": 5, "b": []}),
    ],
)
def test_extraction_reads_what_models_write(text: str, value: Any) -> None:
    """JSON among words, in fences, with quotes, commas and brackets missing, with types mended."""
    assert make_operator("extract", {"schema": SCHEMA}).read(text) == value


@pytest.mark.parametrize("text", ["", "nothing here", '{"c": 1}', "[]", "null", '{"a": {"deep": []}}'])
def test_extraction_never_gives_what_does_not_fit(text: str) -> None:
    """What cannot be mended to fit the schema is an error that says why."""
    with pytest.raises(ExtractError):
        make_operator("extract", {"schema": SCHEMA}).read(text)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="{}[]\",:ab1 \n`'\\", max_size=40))
def test_extraction_gives_a_fitting_value_or_an_error(text: str) -> None:
    """Whatever the text is, the value fits the schema, or an ExtractError is raised."""
    try:
        value = make_operator("extract", {"schema": SCHEMA}).read(text)
    except ExtractError:
        return
    assert isinstance(value["a"], int)
    assert set(value) <= {"a", "b"}
    assert all(isinstance(part, str) for part in value.get("b", []))


def test_extraction_without_repair_takes_only_what_is_whole() -> None:
    """Repair can be switched off."""
    operator = make_operator("extract", {"schema": SCHEMA, "repair": False})
    assert operator.read('so: {"a": 1}') == {"a": 1}
    with pytest.raises(ExtractError):
        operator.read("{'a': 1}")


def test_extracted_values_go_into_the_row_a_field_or_rows_of_their_own() -> None:
    """§5.1: properties join the row; or the value gets a field; or a list becomes rows."""
    rows = [{"answer": '{"a": 1}', "n": 1}]
    assert run([make_operator("extract", {"schema": SCHEMA})], rows)[0]["a"] == 1
    assert run([make_operator("extract", {"schema": SCHEMA, "output": "v"})], rows)[0]["v"] == {"a": 1}
    many = make_operator("extract", {"schema": {"type": "array", "items": SCHEMA}, "explode": True})
    found = run([many], [{"answer": '[{"a": 1}, {"a": 2}]', "n": 1}])
    assert [(row["_i"], row["a"], row["n"]) for row in found] == [("0_0", 1, 1), ("0_1", 2, 1)]


@pytest.mark.parametrize(("choice", "rows"), [("drop", []), ("null", [None])])
def test_rows_without_a_value_are_dropped_or_nulled_when_asked(choice: str, rows: list[Any]) -> None:
    """§14.1: such a row fails by default; else it is dropped, or its value is null."""
    operator = make_operator("extract", {"schema": SCHEMA, "output": "v", "on_invalid": choice})
    assert [row["v"] for row in run([operator], [{"answer": "no"}])] == rows
    with pytest.raises(RowError, match="ExtractError: no JSON in 'no'"):
        run([make_operator("extract", {"schema": SCHEMA})], [{"answer": "no"}])


def test_a_schema_is_checked_and_fetches_nothing() -> None:
    """A broken schema is named with its place; a reference elsewhere is not followed."""
    with pytest.raises(ConfigError, match=r"schema at \$\.properties\.a\.type"):
        make_operator("extract", {"schema": {"properties": {"a": {"type": "int"}}}})
    operator = make_operator("extract", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}})
    with pytest.raises(Exception, match="Unresolvable"):
        operator.read('{"a": 1}')


@pytest.mark.parametrize("batch", [1, 16])
def test_equal_rows_are_dropped_but_the_first(batch: int) -> None:
    """Exact deduplication keeps the first row of its kind, by some fields or by all."""
    chance = random.Random(1)
    rows = [{"text": f"t{chance.randrange(40)}", "n": n} for n in range(300)]
    kept = run([make_operator("deduplicate", {"fields": ["text"]})], rows, batch_size=batch, parallel_size=4)
    first = {row["text"]: row["n"] for row in reversed(rows)}
    assert [row["n"] for row in kept] == sorted(first.values())
    assert len(run([make_operator("deduplicate")], rows + rows)) == len(rows)
    loose = [{"text": "A  b"}, {"text": "a B "}]
    assert len(run([make_operator("deduplicate", {"normalize": True})], loose)) == 1


@given(st.lists(st.integers(0, 2**128 - 1) | st.integers(0, 9) | st.integers(0, 9).map(lambda n: n << 64)))
def test_digests_are_a_set(digests: list[int]) -> None:
    """Sorted runs answer as a set does, also where halves of digests are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_RECENT", 3)
        seen: set[int] = set()
        found = Digests()
        for at in range(0, len(digests), 4):
            some = digests[at : at + 4]
            expected = [
                digest not in seen and digest not in some[:place] for place, digest in enumerate(some)
            ]
            assert found.add(some) == expected
            seen.update(some)


def near_rows() -> list[dict[str, Any]]:
    """Forty texts of 60 words, each three times with 0, 1 and 30 words changed, shuffled."""
    chance = random.Random(2)
    words = [f"w{n}" for n in range(4000)]
    rows = []
    for text in range(40):
        base = chance.choices(words, k=60)
        for changed in (0, 1, 30):
            other = list(base)
            for place in chance.sample(range(60), changed):
                other[place] = chance.choice(words)
            rows.append({"text": " ".join(other), "of": text, "changed": changed})
    chance.shuffle(rows)
    return rows


def test_nearly_equal_rows_are_dropped_and_others_are_not() -> None:
    """At threshold 0.6 a text with one word in 60 changed is a duplicate, one with half is not."""
    kept = run([make_operator("near-deduplicate", {"threshold": 0.6, "permutations": 256})], near_rows())
    by_text = [sorted(row["changed"] == 30 for row in kept if row["of"] == text) for text in range(40)]
    assert by_text == [[False, True]] * 40


def test_near_duplicates_can_be_marked_instead() -> None:
    """With `mark`, rows stay and say which earlier row they are like."""
    marked = run([make_operator("near-deduplicate", {"threshold": 0.6, "mark": "like"})], near_rows())
    assert len(marked) == 120
    rows = {row["_i"]: row for row in marked}
    pairs = [(row, rows[row["like"]]) for row in marked if row["like"] is not None]
    assert len(pairs) == 40
    assert all(row["of"] == earlier["of"] and earlier["_i"] < row["_i"] for row, earlier in pairs)


class Stop(BaseOperator):
    """Cancels its pipeline at a row, if it has one."""

    def __init__(self, at: int) -> None:
        self.at = at
        self._pipeline: UnifiedPipeline | None = None

    def process_item(self, item, ctx=None):
        if self._pipeline is not None and item["_i"] >= self.at:
            self._pipeline.cancel()
        return item


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("deduplicate", {"fields": ["of"]}),
        ("near-deduplicate", {"threshold": 0.6}),
        ("near-deduplicate", {"threshold": 0.6, "mark": "like"}),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_deduplication_remembers_over_a_restart(name: str, params: dict[str, Any], streaming: bool) -> None:
    """A run that ended in between gives the rows that an uninterrupted one gives."""
    rows = near_rows()
    expected = run([Stop(60), make_operator(name, params)], rows)
    first, last = make_operator(name, params), Stop(60)
    operators = [first, last] if streaming else [last, first]
    made = UnifiedPipeline(operators, "jsonl://in.jsonl", "jsonl://out.jsonl", streaming=streaming)
    last._pipeline = made.create("p", overwrite=True)
    assert made.run().status == "canceled"
    operators = (
        [make_operator(name, params), Stop(60)] if streaming else [Stop(60), make_operator(name, params)]
    )
    assert UnifiedPipeline(operators).resume("p").run().status == "completed"
    assert read() == expected


def test_the_example_runs_against_its_stub(tmp_path: Path) -> None:
    """examples/pipeline: its file runs as it stands, and every call that was charged became a row."""
    example = Path(__file__).parents[2] / "examples" / "pipeline"
    for name in ("texts.py", "titles.yaml", "stub.py"):
        shutil.copy(example / name, name)
    subprocess.run([sys.executable, "texts.py"], check=True, capture_output=True)
    stub = subprocess.Popen(
        [sys.executable, "stub.py", "--log", "charged.jsonl"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert stub.stdout is not None
        port = stub.stdout.readline().strip()
        spec = Path("titles.yaml").read_text().replace("8731", port)
        Path("titles.yaml").write_text(spec)
        command = [
            sys.executable,
            "-c",
            "from asysi.cli import main; main()",
            "pipeline",
            "run",
            "titles.yaml",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        stub.kill()
        stub.communicate()
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in Path(".data/titles.jsonl").read_text().splitlines()]
    charged = Path("charged.jsonl").read_text().count("\n")
    assert f"requests {charged}," in done.stdout
    assert 20 < len(rows) <= charged
    assert all(row["card"].startswith(f"{row['topic']}: {row['title']}") for row in rows)
