"""Waits for the in-band end of the stream, as long as there is progress."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from asysi.finish.status import Snapshot, settled

PATIENCE = 120.0
"""Seconds without progress after which finish gives up on a stream that has started."""
START_PATIENCE = 1800.0
"""Seconds without progress allowed before the host's first step; it may load a large model."""
TERMINATION_PATIENCE = 8.0
"""Seconds after SIGTERM for a stream that has started to settle, so that its ledger can be closed."""
POLL = 0.1


@dataclass(frozen=True, slots=True)
class WaitResult:
    """The result of waiting."""

    snapshot: Snapshot
    gave_up: str | None = None
    """Why finish stopped waiting before the end."""
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
    """Poll until the stream has settled, progress stops, or SIGTERM arrives.

    After SIGTERM a stream that has started gets TERMINATION_PATIENCE seconds to settle.

    Args:
        look: returns the current state of the rings.
        beat: liveness callback, called at every poll.
        stop: returns whether SIGTERM was received.
        patience: seconds without progress allowed once the host has started.
        start_patience: seconds without progress allowed before that.
        clock: monotonic clock in seconds.
        sleep: sleeps for the given seconds.
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
