"""A plan that is written before any work starts and updated with the outcome of every step."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from asysi.files import write_atomic

T = TypeVar("T")
log = logging.getLogger("asysi.weights")


@dataclass(frozen=True, slots=True)
class WorkStep:
    """A step of a plan, and its current state."""

    name: str
    does: str
    """What it does, and what it produces."""
    done_when: str
    """Condition under which it counts as done."""
    state: str = "planned"
    """planned | skipped | done | failed."""
    seconds: float = 0.0
    note: str = ""

    def worded(self, words: Mapping[str, str]) -> "WorkStep":
        """Return the step with the names in its text filled in."""
        return replace(self, does=self.does.format(**words), done_when=self.done_when.format(**words))


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """Return value of a step: its result, its state, and a note."""

    result: T
    state: str = "done"
    note: str = ""


class WorkPlan:
    """A plan stored in a JSON file."""

    def __init__(
        self,
        file: Path,
        head: Mapping[str, Any],
        steps: Sequence[WorkStep],
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.file, self._head, self.steps, self._say = file, dict(head), list(steps), say
        self._write()

    def carry_out(self, name: str, action: Callable[[], Done[T]]) -> T:
        """Carry out the step `name` and write its outcome; an exception is written too and re-raised."""
        began = time.monotonic()
        try:
            done = action()
        except Exception as error:
            self._settle(name, "failed", began, str(error))
            raise
        self._settle(name, done.state, began, done.note)
        self._say(f"{name:<9} {done.state}{f': {done.note}' if done.note else ''}")
        return done.result

    def _settle(self, name: str, state: str, began: float, note: str) -> None:
        seconds = round(time.monotonic() - began, 3)
        self.steps = [
            replace(one, state=state, seconds=seconds, note=note) if one.name == name else one
            for one in self.steps
        ]
        log.info("%s: %s in %.1f s%s", name, state, seconds, f" ({note})" if note else "")
        self._write()

    def _write(self) -> None:
        content = {**self._head, "steps": [asdict(step) for step in self.steps]}
        write_atomic(self.file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
