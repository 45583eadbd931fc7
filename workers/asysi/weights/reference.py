"""`python -m asysi.weights.reference` prints docs/reference/weights.md: columns, block types and problems."""

import inspect
from collections.abc import Iterable, Sequence

from asysi.weights import errors
from asysi.weights.comparing.compare import DIFFERENCE_COLUMNS
from asysi.weights.statistics.parameter_families import MEANINGS
from asysi.weights.tables.columns import COLUMNS, ORIGINAL, Column

_HEAD = """\
# What `asysi weights` writes

<!-- Made by `python -m asysi.weights.reference`; edit workers/asysi/weights instead. -->

The page for users is [weights.md](../weights.md).
"""


def render() -> str:
    """Return the page as Markdown."""
    return "\n".join(
        [
            _HEAD,
            "## Columns of `params`",
            "",
            f"The first {ORIGINAL} are those of the original design, in its order. A column that is not",
            "always there is empty where there is nothing to say; `note` says why.",
            "",
            *_columns(COLUMNS),
            "",
            "## Columns of `difference`",
            "",
            "W is the tensor in the first checkpoint, ΔW what must be added for that of the second.",
            "",
            *_columns(DIFFERENCE_COLUMNS),
            "",
            "## Block types",
            "",
            *_table(("`block_type`", "is"), ([f"`{block}`", said] for block, said in MEANINGS.items())),
            "",
            "## Problems",
            "",
            "Each is listed on stderr and in `run_meta.json`; tensors that are not affected are analysed.",
            "",
            *_table(("problem", "is"), _problems()),
            "",
        ]
    )


def _columns(columns: Sequence[Column]) -> list[str]:
    return _table(
        ("column", "type", "always", "holds"),
        ([f"`{one.name}`", one.kind, "yes" if one.required else "", one.text] for one in columns),
    )


def _problems() -> Iterable[list[str]]:
    for name, found in vars(errors).items():
        if inspect.isclass(found) and errors.WeightsError in found.__mro__[1:]:
            yield [f"`{name}`", (inspect.getdoc(found) or "").partition("\n")[0]]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    print(render(), end="")
