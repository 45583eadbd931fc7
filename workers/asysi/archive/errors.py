"""What can be wrong with an archive; every error names the file and the place in it."""

from pathlib import Path


class MScanError(Exception):
    """An archive that cannot be read, or not at this place.

    Attributes:
        problem: what is wrong.
        path: the segment.
        offset: byte in the segment, None when it is about the whole file.
        chunk: number of the chunk, None outside chunks.
    """

    def __init__(
        self, problem: str, path: Path | str = "", offset: int | None = None, chunk: int | None = None
    ) -> None:
        where = str(path)
        where += f" at byte {offset}" if offset is not None else ""
        where += f" (chunk {chunk})" if chunk is not None else ""
        super().__init__(f"{where}: {problem}" if where else problem)
        self.problem, self.path, self.offset, self.chunk = problem, Path(path), offset, chunk

    def __reduce__(self) -> tuple[type["MScanError"], tuple[object, ...]]:
        return type(self), (self.problem, self.path, self.offset, self.chunk)


class TornError(MScanError):
    """The segment ends without its footer: its writer was killed, or it is still being written."""


class CorruptError(MScanError):
    """Bytes do not have their checksum, or sizes contradict each other."""


class VersionError(MScanError):
    """No `.mscan` segment, or one of a version that this reader does not know."""
