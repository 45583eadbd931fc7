"""Waits for the in-band end, as long as anything moves."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from asysi.finish.status import Snapshot, settled

PATIENCE = 120.0
"""Seconds without any motion after which a stream that has begun is given up."""
START_PATIENCE = 1800.0
"""Seconds that a host may take to its first step: it may load a large model."""
TERMINATION_PATIENCE = 8.0
"""Seconds after SIGTERM in which a stream that has begun may come to rest, and its books be closed."""
POLL = 0.1


@dataclass(frozen=True, slots=True)
class WaitResult:
    """How the waiting ended."""

    snapshot: Snapshot
    gave_up: str | None = None
    """Why finish stopped waiting before the end, as a sentence."""
    terminated: bool = False


def wait(
    look: Callable[[], Snapshot],
    beat: Callable[[], None],
    stop: Callable[[], bool],
    *,
    patience: float = PATIENCE,
    start_patience: float = START_PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> WaitResult:
    """Look until the bus is closed and every consumer has finished, until nothing moves any more, or until
    told; then a stream that has begun has TERMINATION_PATIENCE for its end.

    Args:
        look: returns the rings now.
        beat: called at every look; waiting is what this loop is for.
        stop: whether SIGTERM has come.
        patience: seconds without motion once the host has begun.
        start_patience: seconds without motion before that.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """
    moved, before = clock(), None
    told: float | None = None
    while True:
        snapshot = look()
        beat()
        if settled(snapshot):
            return WaitResult(snapshot, terminated=told is not None or stop())
        if stop():
            told = clock() if told is None else told
            if not snapshot.host.steps or clock() - told > TERMINATION_PATIENCE:
                return WaitResult(snapshot, terminated=True)
        signs = _signs(snapshot)
        if signs != before:
            moved, before = clock(), signs
        allowed = patience if snapshot.host.steps else start_patience
        if clock() - moved > allowed:
            return WaitResult(snapshot, gave_up=_reason(snapshot, allowed))
        sleep(POLL)


def _signs(snapshot: Snapshot) -> object:
    return (
        snapshot.motion,
        snapshot.capture_state,
        snapshot.bus_state,
        snapshot.hook_state,
        dict(snapshot.readers),
    )


def _reason(snapshot: Snapshot, allowed: float) -> str:
    waiting = [f"{name} is {state}" for name, state in snapshot.readers.items() if not state.final]
    states = [f"the host's ring is {snapshot.capture_state}", f"hook is {snapshot.hook_state}",
              f"the bus is {snapshot.bus_state}", *waiting]  # fmt: skip
    return f"nothing moved for {allowed:.0f} s: {', '.join(states)}; see the logs of the worker that stopped"
