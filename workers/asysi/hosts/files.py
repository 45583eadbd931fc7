"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_atomic(file: Path, text: str) -> None:
    """Write `text` to `file` by way of a temporary file beside it; its folder is made when missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
