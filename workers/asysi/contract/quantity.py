"""Kubernetes quantities (`64Mi`, `1500m`, `2`) as numbers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_SUFFIX = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
PATTERN = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(k|M|G|T|Ki|Mi|Gi|Ti)?$"
"""Greater than zero: Kubernetes treats a limit of 0 as no limit."""


def parse_bytes(quantity: str) -> int:
    """Return the number of bytes of a memory quantity.

    Raises ValueError if the text is not a quantity.
    """
    match = re.fullmatch(PATTERN, quantity)
    if match is None:
        raise ValueError(
            f"{quantity!r} is not a memory quantity: write a number above 0 with Ki, Mi, Gi or Ti, like 64Mi"
        )
    suffix = match.group(3) or ""
    number = quantity[: len(quantity) - len(suffix)] if suffix else quantity
    return int(float(number) * _SUFFIX[suffix])


def format_bytes(count: int) -> str:
    """Return `count` (bytes, >= 0) as a quantity in the largest binary unit without a fraction."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        if count and count % _SUFFIX[suffix] == 0:
            return f"{count // _SUFFIX[suffix]}{suffix}"
    return str(count)


def same_amount(one: str, other: str) -> bool:
    """Return whether two texts are quantities of the same amount, such as `1Gi` and `1024Mi`."""
    try:
        return parse_bytes(one) == parse_bytes(other)
    except ValueError:
        return False


def _checked(quantity: str) -> str:
    parse_bytes(quantity)
    return quantity


Memory = Annotated[str, Field(pattern=PATTERN, max_length=16), AfterValidator(_checked)]
"""A memory quantity in Kubernetes notation."""
