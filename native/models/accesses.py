"""Read the ring's accesses to shared memory, with their memory orders, out of its headers.

The relacy models are compiled with the orders found here, and `accesses.txt` keeps all of them, so that a
change of the protocol cannot leave the models behind unseen.
"""

import re
from dataclasses import dataclass
from pathlib import Path

HEADERS = Path(__file__).parent.parent / "include" / "asysi"
MODELLED = (
    *("layout.hpp", "seat.hpp", "claim.hpp", "overwrite.hpp", "drop_new.hpp", "books.hpp"),
    *("takeover.hpp", "writer.hpp", "reader.hpp"),
)
RECORD = Path(__file__).parent / "accesses.txt"

_COMMENT = re.compile(r"//[^\n]*")
_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"')
# Members of a class, and void ones of a class within it.
_FUNCTION = re.compile(
    r"^ {4}(?: {4}(?=void |~))?(?:[^\s#/][^\n;{}]*?[\s~*&])?~?(?P<name>\w+)\((?P<rest>[^;]*?)\{",
    re.MULTILINE | re.DOTALL,
)
_INDEX = r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
_CALL = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_OPERATION = re.compile(
    rf"(?P<object>\w+(?:\.\w+|->\w+|::\w+|{_INDEX}|{_CALL})*)(?:\.|->)"
    r"(?P<operation>load|store|exchange|fetch_\w+|compare_exchange_\w+)\("
)
_ORDER = re.compile(r"std::memory_order_(\w+)")
_KEYWORDS = {"if", "for", "while", "switch", "return", "catch", "alignas"}


class ChangedError(Exception):
    """The headers no longer have what a model is built on."""


@dataclass(frozen=True)
class Access:
    """One access to an atomic in the order of the source.

    Args:
        header: file name.
        function: its name alone.
        target: the atomic, as written, without its `std::memory_order`.
        operation: load, store, fetch_or ...
        orders: what is written, success before failure; empty means the default, seq_cst.
    """

    header: str
    function: str
    target: str
    operation: str
    orders: tuple[str, ...]

    def __str__(self) -> str:
        orders = ", ".join(self.orders) or "-"
        return f"{self.header:<14}{self.function:<22}{self.target}.{self.operation}  {orders}"


def accesses() -> list[Access]:
    """Return every access of the modelled headers, in the order of the source."""
    return [access for name in MODELLED for access in _of_header(name, (HEADERS / name).read_text())]


def record() -> str:
    """Return what `accesses.txt` should hold."""
    return "".join(f"{access}\n" for access in accesses())


def order(
    found: list[Access], function: str, target: str, operation: str, *, place: int = 0, nth: int | None = None
) -> str:
    """Return the memory order of the access whose atomic matches `target`.

    Place 1 is the order of a failed compare-exchange. With `nth` that one of several, from 0; without it all
    that fit must have one order.

    Raises:
        ChangedError: there is no such access, or several with different orders.
    """
    fits = [
        a for a in found if (a.function, a.operation) == (function, operation) and re.search(target, a.target)
    ]
    chosen = fits if nth is None else fits[nth : nth + 1]
    orders = {(a.orders or ("seq_cst", "seq_cst"))[place] for a in chosen}
    if len(orders) != 1:
        raise ChangedError(
            f"{function}() has {len(fits)} accesses like {target}.{operation}, with the orders "
            f"{sorted(orders)}: the models are built on one; bring native/models in line with the headers"
        )
    return orders.pop()


def _of_header(name: str, text: str) -> list[Access]:
    text = _TEXT.sub('""', _COMMENT.sub("", text))
    found = []
    for function in _FUNCTION.finditer(text):
        if function["name"] in _KEYWORDS:
            continue
        body = text[function.end() : _closing(text, function.end(), "{}")]
        for hit in _OPERATION.finditer(body):
            arguments = body[hit.end() : _closing(body, hit.end(), "()")]
            target = re.sub(r"\s+", " ", hit["object"])
            orders = tuple(_ORDER.findall(arguments))
            found.append(Access(name, function["name"], target, hit["operation"], orders))
    return found


def _closing(text: str, start: int, brackets: str) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == brackets[0]) - (text[at] == brackets[1])
        if depth == 0:
            return at
    raise ChangedError(f"a {brackets[0]} is never closed")
