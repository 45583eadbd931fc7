"""Errors of checkpoints. Each names the file, the reason, and what to do."""

from asysi.contract.errors import ConfigError

NAMED = 5
"""Maximum number of tensors listed per problem."""


class WeightsError(Exception):
    """A part of a checkpoint cannot be read; the others still can.

    Attributes:
        problem: what is wrong and what to do, as a sentence that begins with the file.
        tensors: names of the tensors lost because of it; empty if they are not known.
    """

    def __init__(self, problem: str, tensors: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem, self.tensors = problem, tensors

    @property
    def listed(self) -> str:
        """The problem, followed by the first affected names that its text does not mention."""
        names = [name for name in self.tensors if name not in self.problem]
        if not names:
            return self.problem
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{self.problem}. It concerns {', '.join(names[:NAMED])}{more}"

    def __reduce__(self) -> tuple[type["WeightsError"], tuple[object, ...]]:
        return type(self), (self.problem, self.tensors)


class TruncatedShardError(WeightsError):
    """The file ends before its tensors do."""


class HeaderSizeError(WeightsError):
    """The header is larger than the file, or than a header may be."""


class HeaderError(WeightsError):
    """The header is not valid safetensors JSON, or a tensor's entry is inconsistent."""


class OverlapError(WeightsError):
    """Two tensors share bytes of a file."""


class GapError(WeightsError):
    """Bytes of a file belong to no tensor."""


class DuplicateNameError(WeightsError):
    """A name occurs twice in a header, or in two files."""


class MissingShardError(WeightsError):
    """The index names a missing file."""


class LfsPointerError(WeightsError):
    """The file is a Git LFS pointer: a text placeholder for a file that was not fetched."""


class MissingTensorError(WeightsError):
    """The index names a tensor that its file does not contain."""


class EscapingPathError(WeightsError):
    """The index names a file outside the checkpoint's folder."""


class AnalysisError(WeightsError):
    """A tensor could be read but not analysed."""


class AdapterError(WeightsError):
    """A part of an adapter that cannot be added to the base."""


class PickleError(ConfigError):
    """There are only pickles, which can execute arbitrary code when loaded."""
