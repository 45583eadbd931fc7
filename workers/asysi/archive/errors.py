"""Errors of archives; each names the file and the position in it."""

from pathlib import Path
from typing import Self


class MScanError(Exception):
    """An archive, or a part of it, cannot be read.

    Attributes:
        problem: the problem.
        path: the segment.
        offset: byte offset in the segment, None if it concerns the whole file.
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

    def without_frames(self) -> Self:
        """Return the error without traceback and cause: collected ones would keep a chunk in memory each."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def __reduce__(self) -> tuple[type["MScanError"], tuple[object, ...]]:
        return type(self), (self.problem, self.path, self.offset, self.chunk)


class TornError(MScanError):
    """The segment ends without its footer: its writer was killed, or it is still being written."""


class CorruptError(MScanError):
    """A checksum does not match, or sizes are inconsistent."""


class VersionError(MScanError):
    """Not an `.mscan` segment, or one of an unsupported version."""
