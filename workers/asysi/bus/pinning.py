"""Registers a ring's pool with the accelerator's driver, so that copies need no staging buffer."""

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

Hook = Callable[[int, int], Callable[[], None]]
"""Registers (address, bytes) and returns the undo function; raises RuntimeError if the driver refuses."""

_PORTABLE = 1  # cudaHostRegisterPortable: for every context of the process


class Participant(Protocol):
    """A writer or a reader of a ring."""

    def pool(self) -> tuple[int, int]:
        """Return address and bytes of the pool."""
        ...

    def note_registered(self, registered: bool) -> None:
        """Publish whether the pool is registered to monitoring."""
        ...


def cuda_hook() -> Hook | None:
    """Return a hook that calls cudaHostRegister; None if CUDA is not available."""
    import torch  # noqa: PLC0415 - heavy, and a consumer needs none

    if not torch.cuda.is_available():
        return None
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def register(address: int, size: int) -> Callable[[], None]:
        if error := int(runtime.cudaHostRegister(address, size, _PORTABLE)):
            raise RuntimeError(f"cudaHostRegister of {size} bytes answered {error}")

        def undo() -> None:
            runtime.cudaHostUnregister(address)

        return undo

    return register


class Pinning:
    """Context manager that registers a participant's pool; exit it before closing the participant.

    Args:
        participant: owner of the pool; it is kept alive, and so are its pages.
        hook: registers the pool; None leaves it unregistered.
    """

    def __init__(self, participant: Participant, hook: Hook | None) -> None:
        self._participant, self._hook = participant, hook
        self._undo: Callable[[], None] | None = None
        self.refused: str | None = None
        """Why the driver refused; an unregistered pool still works."""

    @property
    def registered(self) -> bool:
        """Whether the pool is registered."""
        return self._undo is not None

    def __enter__(self) -> Self:
        if self._hook is not None and self._undo is None:
            try:
                self._undo = self._hook(*self._participant.pool())
            except RuntimeError as error:
                self.refused = str(error)
        self._participant.note_registered(self.registered)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
            self._participant.note_registered(False)
