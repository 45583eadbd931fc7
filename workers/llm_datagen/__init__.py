"""`asysi.pipeline` under the name that its first users know."""

from typing import Any

import asysi.pipeline
from asysi.pipeline import __all__ as __all__


def __getattr__(name: str) -> Any:
    """Return a name of `asysi.pipeline`, imported when it is first asked for."""
    return getattr(asysi.pipeline, name)
