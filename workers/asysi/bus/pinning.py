"""Makes a ring's pool known to the accelerator's driver: copies to and from it need no staging then."""

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

Hook = Callable[[int, int], Callable[[], None]]
"""Registers (address, bytes) and returns what undoes it; raises RuntimeError when the driver refuses."""

_PORTABLE = 1  # cudaHostRegisterPortable: for every context of the process


class Participant(Protocol):
    """A writer or a reader of a ring."""

    def pool(self) -> tuple[int, int]:
        """Return address and bytes of the pool."""
        ...

    def note_registered(self, registered: bool) -> None:
        """Tell those who look on."""
        ...


def cuda_hook() -> Hook | None:
    """Return the hook that calls cudaHostRegister; None where CUDA is absent."""
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
    """The registration of a participant's pool, while it is entered; leave it before the participant goes.

    Args:
        participant: whose pool it is. It is kept alive, and so are its pages.
        hook: registers and undoes; None leaves the pool as it is.
    """

    def __init__(self, participant: Participant, hook: Hook | None) -> None:
        self._participant, self._hook = participant, hook
        self._undo: Callable[[], None] | None = None
        self.refused: str | None = None
        """Why the driver refused; a pool that is not registered works all the same."""

    @property
    def registered(self) -> bool:
        """Whether the driver knows the pool."""
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
