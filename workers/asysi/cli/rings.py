"""Implementation of `asysi ring inspect` and `asysi ring reset`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from asysi.bus.accounts import ConsumerAccounts, Produced, read_accounts, total_produced
from asysi.bus.states import DropReason
from asysi.cli.tables import new_table, stdout_console
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import format_bytes

if TYPE_CHECKING:
    from asysi_ring import Control


def print_ring(folder: Path) -> None:
    """Print geometry, memory, claims, cursors, lag, pins and row counters of the ring in `folder`.

    Raises:
        ConfigError: there is no ring of this version.
    """
    with _open(folder) as control:
        out = stdout_console()
        out.print(_facts(control), highlight=False)
        out.print(_readers(control))
        out.print(_shards(control))
        accounts = read_accounts(control)
        if not accounts.produced:
            out.print("No hook point has been registered yet.")
            return
        out.print(_produced(accounts.produced))
        for reader, consumer in accounts.consumers.items():
            out.print(_consumed(reader, consumer))


def reset_ring(folder: Path, sure: bool) -> None:
    """Empty the ring in `folder`; ask for confirmation if that deletes row counters, unless `sure`.

    Raises:
        ConfigError: there is no ring of this version, it is in use, or confirmation is not possible.
    """
    from asysi_ring import BusyError, reset  # noqa: PLC0415 - `asysi check` works without the compiled ring

    with _open(folder) as control:
        produced = read_accounts(control).produced
        rows, points = total_produced(produced.values()).published, len(produced)
    folder = _ring_folder(folder)
    lost = f"{rows:,} published rows at {points} hook points"
    if rows and not sure:
        if not sys.stdin.isatty():
            raise ConfigError(f"the ledger of {folder} would be lost: {lost}. Use --yes to reset it anyway")
        typer.confirm(f"The ledger of {folder} will be lost: {lost}. Reset it?", abort=True)
    try:
        reset(str(folder), timeout=1)
    except BusyError as error:
        raise ConfigError(f"{folder} was not emptied: {error}. Stop the processes using it first") from error
    typer.echo(f"{folder} is empty; deleted: {lost}")


def _open(folder: Path) -> "Control":
    from asysi_ring import Control, RingError  # noqa: PLC0415 - `asysi check` works without the compiled ring

    folder = _ring_folder(folder)
    try:
        return Control(str(folder))
    except (RingError, OSError) as error:
        raise ConfigError(f"{folder} has no readable ring: {error}") from error


def _ring_folder(path: Path) -> Path:
    """Return the folder of a ring; `path` can be one of its files."""
    if path.name in {"control", "data"} and path.is_file():
        return path.parent
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist: name the folder of a ring, with `control` and `data` in it"
        )
    if not path.is_dir():
        raise ConfigError(f"{path} is a file: name the folder of a ring, with `control` and `data` in it")
    if not (path / "control").exists():
        below = ", ".join(sorted(str(found.parent) for found in path.glob("*/control")))
        hint = f"there are some below it: {below}" if below else "it has no file named `control`"
        raise ConfigError(f"{path} holds no ring: {hint}")
    return path


def _facts(control: "Control") -> Table:
    ring, memory = control.geometry(), control.topology()
    shape = f"{ring['shards']} × {ring['chunks']} chunks of {format_bytes(int(ring['chunk_bytes']))}"
    dropped = total_produced(read_accounts(control).produced.values()).dropped
    writer = f"{control.writer_state()}, generation {ring['generation']}; {_mapped(memory['writer'])}"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("ring", f"{shape} ({ring['depth']} unread per shard), {ring['policy']}, ABI {ring['abi']}")
    facts.add_row("memory", _memory(memory))
    facts.add_row("writer", writer)
    facts.add_row("claims", _claims(control))
    facts.add_row("dropped", f"{_reasons(dropped)} rows")
    return facts


def _claims(control: "Control") -> str:
    scattered = sum(control.scattered())
    times = "1 time" if scattered == 1 else f"{scattered:,} times"
    return f"{sum(control.open_claims()):,} open; {times} scattered (no neighbouring chunks)"


def _memory(memory: dict[str, Any]) -> str:
    kind = f"{memory['file_system']} in pages of {format_bytes(memory['page_bytes'])}"
    missing = memory["bytes"] - memory["allocated"]
    whole = "all allocated" if missing <= 0 else f"{format_bytes(missing)} of it not allocated"
    pages = memory["nodes"]
    shares = ", ".join(
        f"{count / sum(pages.values()):.0%} on NUMA node {node}" for node, count in pages.items()
    )
    nodes = "one NUMA node" if memory["machine_nodes"] == 1 else shares or "NUMA nodes unknown"
    huge = "huge pages on request" if memory["huge_on_request"] else "no huge pages for shared memory"
    return f"{format_bytes(memory['bytes'])} of {kind}, {whole}; {nodes}; {huge}"


def _mapped(attached: dict[str, Any]) -> str:
    if not attached["bytes"]:
        return "nothing mapped yet"
    how = {"madvise": "populated", "touched": "populated by touching", "no": "not populated"}
    driver = ", registered with CUDA" if attached["registered"] else ""
    return f"{format_bytes(attached['bytes'])} mapped, {how[attached['populated']]}{driver}"


def _readers(control: "Control") -> Table:
    mapped = control.topology()["readers"]
    shown = new_table("readers", "reader", "state", "epoch", "lag", "pins", "mapping", left=2)
    shown.columns[-1].justify = "left"
    pins = int(control.geometry()["pins"])
    for reader in control.readers():
        held = control.pins(reader)
        shown.add_row(
            reader,
            control.reader_state(reader),
            f"{control.epoch(reader)}",
            f"{control.lag(reader):.1%}",
            f"{sum(held)} of {pins * len(held)}",
            _mapped(mapped[reader]),
        )
    return shown


def _shards(control: "Control") -> Table:
    shown = new_table(
        "shards, in packets", "shard", "head", "claims", "scattered", "reader", "cursor", "unread", "pins"
    )
    readers = control.readers()
    cursors = {reader: control.cursors(reader) for reader in readers}
    pins = {reader: control.pins(reader) for reader in readers}
    claims, scattered = control.open_claims(), control.scattered()
    heads = control.heads()  # read after the cursors, so that no reader is ahead of the producer
    idle = 0
    for shard, head in enumerate(heads):
        if not head and not claims[shard] and not scattered[shard]:
            idle += 1
            continue
        produced = (f"{shard}", f"{head:,}", f"{claims[shard]:,}", f"{scattered[shard]:,}")
        for first, reader in zip([True] + [False] * len(readers), readers, strict=False):
            cursor = cursors[reader][shard]
            consumed = (f"{cursor:,}", f"{max(0, head - cursor):,}", f"{pins[reader][shard]}")
            shown.add_row(*(produced if first else ("",) * len(produced)), reader, *consumed)
    shown.columns[4].justify = "left"
    if idle:
        shards = "1 shard has" if idle == 1 else f"{idle} shards have"
        shown.caption, shown.caption_justify = f"{shards} had no packet yet", "left"
    return shown


def _produced(produced: Mapping[str, Produced]) -> Table:
    shown = new_table(
        "produced, in rows", "hook point", "seen", "published", "sampled out", "dropped", "balance"
    )
    for point, made in produced.items():
        balance = made.seen - made.published - made.sampled_out - sum(made.dropped.values())
        numbers = (f"{rows:,}" for rows in (made.seen, made.published, made.sampled_out))
        shown.add_row(point, *numbers, _reasons(made.dropped), _balance(balance))
    return shown


def _consumed(reader: str, consumer: ConsumerAccounts) -> Table:
    shown = new_table(
        f"consumed by {reader}, in rows", "hook point", "position", "durable", "lapped", "rolled back"
    )
    for point, used in consumer.consumed.items():
        rows = (consumer.position[point], used.durable, used.lapped, used.rolled_back)
        shown.add_row(point, *(f"{count:,}" for count in rows))
    return shown


def _reasons(dropped: Mapping[str, int]) -> str:
    """Return the rows by reason as text, in the ring's order."""
    named = ((reason.word, dropped.get(reason.word, 0)) for reason in DropReason)
    return ", ".join(f"{word} {count:,}" for word, count in named if count) or "0"


def _balance(difference: int) -> str:
    return "even" if difference == 0 else f"{difference:+,}"
