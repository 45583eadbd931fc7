"""The telemetry of finish during a run (`/status`) and at its end (the termination message).

Finish writes these models; the operator and the local runner read them. Readers treat the data as untrusted
input: a missing part, or one of another type, is unknown (None or empty), and no content raises an error.
Fields are only ever added, so that each side understands earlier and later releases of the other.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

BODY_LIMIT = 256 * 1024
"""Maximum size of a `/status` response in bytes."""
VERDICTS = ("LedgerBalanced", "DataSound")
"""Conditions of the experiment determined by finish."""
_COUNT_LIMIT = 2**63 - 1
_ITEMS = 4096
_LINES = 64
_TEXT = 253
_MESSAGE = 1024
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,99}")
_CPUS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    number = _number(value)
    if number is None or not 0 <= int(number) < _COUNT_LIMIT:
        return None
    return int(value)  # type: ignore[call-overload,no-any-return]  # a number, as `_number` says


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value[:_TEXT] if isinstance(value, str) else None


def _cpus(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _TEXT and _CPUS.fullmatch(value) else None


def _part(value: object) -> object:
    return value if isinstance(value, dict | BaseModel) else {}


def _parts(value: object) -> list[object]:
    return [one for one in value[:_ITEMS] if _part(one) is one] if isinstance(value, list) else []


def _parts_by_name(value: object) -> dict[str, object]:
    return {name: _part(one) for name, one in value.items()} if isinstance(value, dict) else {}


def _counts(value: object) -> dict[str, int] | None:
    if not isinstance(value, dict):
        return None
    return {name: count for name, one in value.items() if (count := _count(one)) is not None}


def _lines(value: object) -> list[str]:
    return [str(line) for line in value[:_LINES]] if isinstance(value, list) else []


def _conditions(value: object) -> dict[str, dict[str, str]]:
    """Return the complete verdicts; incomplete ones are ignored."""
    found = {}
    for kind in VERDICTS:
        said = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(said, dict):
            continue
        status, reason, message = (said.get(key) for key in ("status", "reason", "message"))
        if status not in ("True", "False", "Unknown") or not isinstance(reason, str):
            continue
        if _REASON.fullmatch(reason):
            found[kind] = {"status": status, "reason": reason, "message": str(message or "")[:_MESSAGE]}
    return found


Number = Annotated[float | None, BeforeValidator(_number)]
"""A finite number."""
Count = Annotated[int | None, BeforeValidator(_count)]
"""A non-negative integer."""
Flag = Annotated[bool | None, BeforeValidator(_flag)]
Text = Annotated[str | None, BeforeValidator(_text)]
"""At most 253 characters."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON representation; unknown numbers are null."""
        return self.model_dump(mode="json", by_alias=True)


class ModelProgress(_Part):
    """Progress of the model."""

    steps: Count = None
    steps_total: Count = None
    tokens: Count = None
    tokens_total: Count = None
    passes_begun: Count = Field(default=None, alias="pass")
    tokens_per_second: Number = None


class Rereading(_Part):
    """How far finish is with a reading of its own, once the stream has ended."""

    what: Text = None
    """What is read for: `report` or `cross-entropy`."""
    tokens: Count = None
    tokens_total: Count = None
    seconds_left: Number = None
    """None while the pace is not known."""


class Captured(_Part):
    """Rows at capture, over all hook points."""

    seen: Count = None
    published: Count = None
    sampled_out: Count = None
    dropped: Annotated[dict[str, int] | None, BeforeValidator(_counts)] = None
    """By reason."""

    @property
    def dropped_rows(self) -> int | None:
        """Rows dropped for any reason."""
        return None if self.dropped is None else min(sum(self.dropped.values()), _COUNT_LIMIT)


class CaptureCounts(Captured):
    """Rows and steps at capture."""

    steps_dropped: Count = None
    """Whole steps skipped because the ring was full."""
    errors: Count = None
    """Exceptions suppressed so that they do not reach the model."""


class ReaderStatus(_Part):
    """A reader of a ring."""

    lag: Number = None
    """Largest unread share of a shard, 0..1."""
    durable: Count = None
    lapped: Count = None
    """Rows overwritten before they were read."""
    rolled_back: Count = None
    state: Text = None


class PointStatus(_Part):
    """A hook point's autoencoder."""

    path: Text = None
    fvu: Number = None
    l0: Number = None
    dead: Number = None
    """Share of dead latents, 0..1."""
    trained: Count = None
    """Rows trained on; if 0, the other metrics have not been written yet."""


class Balance(_Part):
    """Whether the ledger's equations currently hold."""

    balanced: Flag = None
    points: Count = None
    """Number of hook points."""


class SummaryCondition(_Part):
    """The verdict of finish on the ledger or the data."""

    status: str
    """True | False | Unknown."""
    reason: str
    message: str = ""


Conditions = Annotated[dict[str, SummaryCondition], BeforeValidator(_conditions)]
"""Verdicts by condition: `LedgerBalanced` on the ledger, `DataSound` on the data."""


class RunStatus(_Part):
    """The response of finish's `/status`; counts are per attempt, progress covers the whole run."""

    cpus: Annotated[str | None, BeforeValidator(_cpus)] = Field(default=None, exclude=True)
    """CPUs that the container can use, as in `taskset -c`. The worker frame of every container adds it."""
    phase: Text = None
    """starting | running | draining | finishing | analysing | complete | failed."""
    progress: Annotated[ModelProgress, BeforeValidator(_part)] = ModelProgress()
    rate: Number = None
    """Current sampling rate, 0..1."""
    capture: Annotated[CaptureCounts, BeforeValidator(_part)] = CaptureCounts()
    consumers: Annotated[dict[str, ReaderStatus], BeforeValidator(_parts_by_name)] = {}
    points: Annotated[list[PointStatus], BeforeValidator(_parts)] = []
    ledger: Annotated[Balance, BeforeValidator(_part)] = Balance()
    conditions: Conditions = {}
    rereading: Annotated[Rereading, BeforeValidator(_part)] = Rereading()
    """Not written while nothing is read again."""

    def as_json(self) -> dict[str, Any]:
        """Return what is written; unknown numbers are null."""
        written = super().as_json()
        if self.rereading == Rereading():
            del written["rereading"]
        return written

    @classmethod
    def read(cls, body: bytes) -> Self | None:
        """Parse the body of a `/status` response; return None if it is not a JSON object."""
        found = _object(body)
        return None if found is None else cls.model_validate(found)

    @property
    def share_done(self) -> float | None:
        """Completed share of the run, 0..1."""
        at = self.progress
        done, total = (at.tokens, at.tokens_total) if at.tokens_total else (at.steps, at.steps_total)
        return min(1.0, done / total) if done is not None and total else None

    @property
    def counters(self) -> dict[str, int]:
        """The known entries of the experiment's `status.counters`."""
        archiver = self.consumers.get("archiver", ReaderStatus())
        trained = sum(point.trained or 0 for point in self.points) if self.points else None
        return _counters(self.capture, archiver.durable, trained)

    @property
    def sae(self) -> dict[str, float]:
        """The known entries of the experiment's `status.sae`: means over hook points with training."""
        trained = [point for point in self.points if point.trained]
        return _quality(
            _mean(point.fvu for point in trained),
            _mean(point.l0 for point in trained),
            _mean(point.dead for point in trained),
        )

    @property
    def balanced(self) -> bool | None:
        """Whether the ledger balances."""
        return self.ledger.balanced


class Verdict(_Part):
    """Whether the ledger's equations held at the end, and the ones that did not."""

    balanced: Flag = None
    unbalanced: Annotated[list[str], BeforeValidator(_lines)] = []


class Quality(_Part):
    """Means over all autoencoders."""

    fvu: Number = None
    l0: Number = None
    dead: Number = None


class Summary(_Part):
    """Finish's termination message: the totals of an attempt that has ended."""

    attempt: Count = None
    complete: Flag = None
    """Whether the stream ended normally and every consumer finalised its files."""
    interrupted: Flag = None
    """Whether the user stopped the run early."""
    ledger: Annotated[Verdict, BeforeValidator(_part)] = Verdict()
    tokens: Count = None
    capture: Annotated[Captured, BeforeValidator(_part)] = Captured()
    durable: Annotated[dict[str, int] | None, BeforeValidator(_counts)] = None
    """Durable rows by consumer."""
    trained: Count = None
    quality: Annotated[Quality, BeforeValidator(_part)] = Field(default=Quality(), alias="sae")
    problems: Annotated[list[str], BeforeValidator(_lines)] = []
    conditions: Conditions = {}

    @classmethod
    def read(cls, message: str) -> Self | None:
        """Parse the totals in a termination message; return None if it has other content."""
        found = _object(message.encode())
        return None if found is None or "capture" not in found else cls.model_validate(found)

    @property
    def counters(self) -> dict[str, int]:
        """The known entries of the experiment's `status.counters`."""
        return _counters(self.capture, (self.durable or {}).get("archiver"), self.trained)

    @property
    def sae(self) -> dict[str, float]:
        """The known entries of the experiment's `status.sae`."""
        return _quality(self.quality.fvu, self.quality.l0, self.quality.dead)

    @property
    def balanced(self) -> bool | None:
        """Whether the ledger balanced."""
        return self.ledger.balanced

    @property
    def unbalanced(self) -> Sequence[str]:
        """Hook points and hops at which it did not, in the format of `status.ledger`."""
        return [line[:_TEXT] for line in self.ledger.unbalanced]


def read_attempt(message: str) -> int | None:
    """Return the attempt number in prepare's termination message; None if it has other content."""
    return _count((_object(message.encode()) or {}).get("attempt"))


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _counters(capture: Captured, archived: int | None, trained: int | None) -> dict[str, int]:
    counts = {
        "seen": capture.seen,
        "captured": capture.published,
        "sampledOut": capture.sampled_out,
        "dropped": capture.dropped_rows,
        "archived": archived,
        "trained": trained,
    }
    return {key: count for key, count in counts.items() if count is not None}


def _quality(fvu: float | None, l0: float | None, dead: float | None) -> dict[str, float]:
    """Return the known values; a share outside 0..1 counts as unknown."""
    share = dead if dead is not None and 0 <= dead <= 1 else None
    found: Mapping[str, float | None] = {"fvu": fvu, "l0": l0, "dead": share}
    return {key: value for key, value in found.items() if value is not None}


def _mean(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return round(sum(found) / len(found), 6) if found else None
