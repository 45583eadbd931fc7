"""Files become one checked experiment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.contract.loading import check, load, merge, parse, read, resolve_paths, set_value

Tree = dict[str, Any]
Write = Callable[..., Path]

# Trees in which a key always means a mapping (upper case) or never does, as in a schema.
leaves = st.integers() | st.lists(st.integers(), max_size=3) | st.none()
trees = st.recursive(
    st.dictionaries(st.sampled_from("abc"), leaves, max_size=3),
    lambda inner: st.builds(
        lambda plain, parts: plain | parts,
        st.dictionaries(st.sampled_from("abc"), leaves, max_size=2),
        st.dictionaries(st.sampled_from("XYZ"), inner, max_size=2),
    ),
    max_leaves=8,
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a tree, or a text, to a file and returns its path."""

    def make(content: Tree | str, name: str = "scan.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return make


@given(trees, trees, trees)
def test_merging_is_associative(a: Tree, b: Tree, c: Tree) -> None:
    """Files may be merged two by two in any grouping."""
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(trees, trees)
def test_the_later_file_wins(base: Tree, overlay: Tree) -> None:
    """Every value of the overlay is in the merged tree, and what it does not name stays."""
    merged = merge(base, overlay)
    for key in base.keys() | overlay.keys():
        if isinstance(base.get(key), dict) and isinstance(overlay.get(key), dict):
            assert merged[key] == merge(base[key], overlay[key])
        else:
            assert merged[key] == (overlay if key in overlay else base)[key]


@given(trees)
def test_merging_with_nothing_changes_nothing(tree: Tree) -> None:
    """An empty file is neutral on both sides, and a file over itself is itself."""
    assert merge(tree, {}) == merge({}, tree) == merge(tree, tree) == tree


def test_overlays_win_and_lists_are_replaced(write: Write, minimal: Callable[..., Tree]) -> None:
    """A later file replaces values and whole lists, keeps what it does not name, and --set wins over all."""
    base = write(minimal({"capture": {"hookPoints": ["a", "b"], "quantization": "int8"}}), "base.yaml")
    over = write({"spec": {"capture": {"hookPoints": ["c"]}, "bus": {"shards": 3}}}, "over.yaml")
    spec = load([base, over], ["spec.bus.shards=4", "spec.sae.train=[{latents: 8, k: 2}]"]).spec
    assert (spec.capture.hook_points, spec.capture.quantization, spec.bus.shards) == (["c"], "int8", 4)
    assert spec.sae is not None
    assert [(train.latents, train.k) for train in spec.sae.train] == [(8, 2)]


def test_null_unsets(write: Write, minimal: Callable[..., Tree]) -> None:
    """An overlay takes a part away with null; `sae.enabled: false` is the same as `sae: null`."""
    base = write(minimal({"model": {"tokenizer": "/t"}}), "base.yaml")
    over = write({"spec": {"sae": None, "model": {"tokenizer": None}}}, "over.yaml")
    experiment = load([base, over])
    assert experiment.spec.sae is None
    assert experiment.spec.model.tokenizer is None
    assert load([base], ["spec.sae.enabled=false"]).spec.sae is None


def test_paths_are_relative_to_the_current_folder_or_to_their_file(
    write: Write, minimal: Callable[..., Tree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./x` begins at the folder of the file that states it, `x` at the current folder; the rest stays."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    uris = {"model": {"uri": "file://./m", "tokenizer": "t"}, "data": {"uri": "jsonl://../d/*.jsonl"}}
    base = write(minimal(uris), "a/base.yaml")
    over = write({"spec": {"output": {"uri": "./out"}}}, "b/over.yaml")
    spec = load([base, over]).spec
    assert spec.model.uri == f"file://{tmp_path}/a/m"
    assert spec.model.tokenizer == f"{here}/t"
    assert spec.data is not None
    assert spec.data.uri == f"jsonl://{tmp_path}/d/*.jsonl"
    assert spec.output.uri == f"{tmp_path}/b/out"


@pytest.mark.parametrize(
    "uri",
    ["hf://owner/name", "python://a.b:c", "file:///x", "/x", "~/x", "s3://b/x", "jsonl://s3://b/x", "jsonl:///x",
     "jsonl://simplecache::https://h/x", 7, None],
)  # fmt: skip
def test_what_is_no_relative_path_is_left_alone(uri: object) -> None:
    """Absolute paths, URLs of other places and values of wrong types pass unchanged."""
    tree = {"spec": {"model": {"uri": uri}}}
    assert resolve_paths(tree, {("spec", "model", "uri"): Path("/folder")}, Path("/here")) == tree


def test_numbers_are_numbers(write: Write, minimal: Callable[..., Tree]) -> None:
    """`2e-4` is a number, as everywhere but in YAML 1.1."""
    path = write(yaml.safe_dump(minimal()) + "  sae:\n    train: [{lr: 2e-4}]\n")
    sae = load([path]).spec.sae
    assert sae is not None
    assert sae.train[0].lr == 2e-4


def test_aliases_and_merge_keys_work(write: Write) -> None:
    """YAML's own ways of saying something once are understood."""
    layer = read(write("a: &part {x: 1, y: 2}\nb: {<<: *part, y: 3}\nc: *part\n"))
    assert layer.tree == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_an_object_of_the_api_server_is_accepted(minimal: Callable[..., Tree]) -> None:
    """What the API server adds to an experiment does not stop it from being read again."""
    tree = minimal() | {"status": {"phase": "Running"}}
    tree["metadata"] |= {
        "resourceVersion": "1",
        "generation": 2,
        "managedFields": [{}],
        "annotations": {"a": "b"},
    }
    assert check(tree).metadata.name == "minimal"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "scan.yaml is empty"),
        ("- a\n", "scan.yaml is not a mapping"),
        ("just text", "scan.yaml is not a mapping"),
        ("spec:\n  mode: HPC\n  mode: HPC\n", "scan.yaml:3: spec.mode is given twice, first in line 2"),
        ("spec: {model: {uri: a, uri: b}}\n", "scan.yaml:1: spec.model.uri is given twice"),
        ("spec:\n  a: [1, 2\n", "scan.yaml:3:1: this is not YAML"),
        ("spec:\n\ta: 1\n", "scan.yaml:2:1: this is not YAML"),
        ("a: 1\n---\nb: 2\n", "scan.yaml:2:1: this is not YAML: expected a single document"),
        ("a: !!python/object:os.system {}\n", "this is not YAML"),
        ("a: *nobody\n", "scan.yaml:1:4: this is not YAML"),
        ("spec: {1: a}\n", "scan.yaml:1: spec has a key that is not a string"),
        ("a: \x07\n", "scan.yaml: this is not YAML"),
        ("a: &a [*a]\n", "scan.yaml nests deeper than 64 levels"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
            for old, new in ("ab", "bc", "cd", "de", "ef", "fg")), "scan.yaml expands to more than"),
    ],
    ids=range(14),
)  # fmt: skip
def test_files_that_are_no_experiment(write: Write, text: str, said: str) -> None:
    """What is wrong with a file itself is said with file, line and column."""
    with pytest.raises(ConfigError) as error:
        load([write(text)])
    assert said in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder, and bytes that are not text are named."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load([tmp_path / "nowhere.yaml"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load([tmp_path])
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load([binary])
    with pytest.raises(ConfigError, match="no experiment is given"):
        load([])


@pytest.mark.parametrize("setting", ["spec.bus.shards", "=3", "spec..bus=1", "spec.bus.shards=[1"])
def test_settings_that_say_nothing(setting: str) -> None:
    """A --set that is not a path=value is refused by name."""
    with pytest.raises(ConfigError, match="--set"):
        set_value(setting)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    """No text, however odd, makes the reader fail in any other way."""
    try:
        parse(text, "scan.yaml")
    except ConfigError as error:
        assert str(error).startswith("scan.yaml")  # noqa: PT017 - both outcomes are right
