"""Number formatting of the page on parameters."""

import math

from asysi.report.words import UNKNOWN


def short_number(value: float | None) -> str:
    """Return a number with three significant digits: 0.0421, 1.2e-08, 1520."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        digits = max(0, 2 - math.floor(math.log10(size)))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def size(count: float) -> str:
    """Return a number of bytes or parameters with a unit prefix: 22.7M, 1.54G."""
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:.0f}"
