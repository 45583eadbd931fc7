"""Redrive: processes dead letters again under their ids and merges the results into the output.

The letters of each node go through that node and all later ones as a separate, resumable pipeline. Then the
new output is written next to the old one, and one ledger transaction makes it the output: if the redrive is
killed at any point, it has been merged either once or not yet.
"""

import heapq
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from asysi.contract.errors import ConfigError
from asysi.files import sync, write_atomically
from asysi.pipeline.ledger.ledger import LedgerTotals, Redriven, RowLedger
from asysi.pipeline.nodes.node import Node
from asysi.pipeline.nodes.verify import check_log, committed_rows
from asysi.pipeline.rows import values
from asysi.pipeline.rows.blocks import BadLineError, DeadLetter
from asysi.pipeline.rows.ids import FIELD, lineage
from asysi.pipeline.run.run_state import read_image
from asysi.pipeline.streams.data_streams import IDataStream, JsonlStream
from asysi.pipeline.streams.row_log import FileLog
from asysi.pipeline.streams.seal import START_OVER, Seal, SealError, seal_path
from asysi.pipeline.streams.source import CHUNK

_FOLDER = "redrive"
_PENDING, _ROUNDS = "redriven", "redrives"
"""Facts in the ledger: a merged output that is not renamed yet, and the number of redrives."""
_NO_CAP = 1 << 62
_NOWHERE = -1
"""Row number of a dead letter that reached its node only in a redrive."""


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """A pipeline whose nodes have all finished.

    Attributes:
        pipeline_id: its name.
        nodes: its nodes, bound to their streams.
        folder: its results folder.
        budget: limits by name of reported usage, for it and its redrives.
        run_chain: runs or resumes nodes as a separate pipeline, in a folder and with a budget; returns the
            final status.
    """

    pipeline_id: str
    nodes: Sequence[Node]
    folder: Path
    budget: Mapping[str, float]
    run_chain: Callable[[Sequence[Node], Path, Mapping[str, float]], str]


@dataclass(slots=True)
class _Chain:
    """The dead letters of a node, processed by it and all later nodes.

    Attributes:
        sent: number and letter of each input row, in order.
        broken: letters that are not rows and can only fail again.
        nodes: the failed node and all later ones.
        folder: folder for everything it writes.
    """

    sent: list[tuple[int, DeadLetter]]
    broken: list[tuple[int, DeadLetter]]
    nodes: list[Node]
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / f"{self.nodes[-1].node_id}.jsonl"

    @property
    def ledger(self) -> Path:
        return self.folder / "state" / "ledger.sqlite"


def check_completed(folder: Path) -> None:
    """Reject a pipeline that has not completed: it must be run to its end first.

    Raises:
        ConfigError: it has not completed, or does not exist.
    """
    image = read_image(folder)
    if not (folder / "ledger.sqlite").exists():
        raise ConfigError(f"the pipeline {image['pipeline_id']} has not run yet: run it first")
    ledger = RowLedger(folder / "ledger.sqlite")
    try:
        names = [node["node_id"] for node in image["nodes"]]
        waiting = [name for name in names if ledger.finished(name) is None]
    finally:
        ledger.close()
    if waiting:
        raise ConfigError(
            f"the pipeline {image['pipeline_id']} is {image['status']}, node {waiting[0]} is not done: resume"
            " it, then redrive its dead letters"
        )


def redrive(run: CompletedRun, ledger: RowLedger) -> str:
    """Process a completed pipeline's dead letters again.

    Returns:
        completed, canceled or budget_exhausted; the next call continues from there.

    Raises:
        ConfigError: the output was lost with its process.
        SealError: the output differs from the ledger.
    """
    final = run.nodes[-1]
    assert final.output_bus is not None
    finish_merge(ledger, final.output_bus)
    check_output(run, ledger)
    folder = run.folder / _FOLDER / f"{int(ledger.about(_ROUNDS) or 0):04d}"
    chains: list[_Chain] = []
    for index in range(len(run.nodes)):
        chain = _chain(run, ledger, index, folder)
        if chain.sent:
            status = _run(run, chain, _left(run, ledger, chains))
            if status != "completed":
                return status
        if chain.sent or chain.broken:
            chains.append(chain)
    if chains:
        _merge(run, ledger, chains)
        finish_merge(ledger, final.output_bus)
    shutil.rmtree(folder, ignore_errors=True)
    return "completed"


def check_output(run: CompletedRun, ledger: RowLedger) -> None:
    """Reject a redrive into a changed output, before anything is computed or billed.

    Raises:
        ConfigError: the output was lost with its process.
        SealError: the output differs from the ledger, or its seal is missing.
    """
    if ledger.about(_PENDING) not in {None, "null"}:
        return  # an interrupted merge is finished first
    final = run.nodes[-1]
    log, last = _file_log(final), ledger.last(final.node_id)
    if last is not None:
        check_log(final.node_id, log, last, ledger.ranges(final.node_id))
    assert final.output_bus is not None
    if final.output_bus.read_seal() is None:
        raise SealError(
            f"{final.output_bus.uri} has lost its seal or was removed. Restore it with its {seal_path('')},"
            f" or {START_OVER}"
        )


def finish_merge(ledger: RowLedger, bus: IDataStream) -> None:
    """Rename and seal a merged output, if a crash came after its ledger transaction."""
    note = json.loads(ledger.about(_PENDING) or "null")
    if note is None:
        return
    made, path = Path(note["made"]), Path(note["path"])
    bus.unseal()
    if made.exists():
        made.replace(path)
        sync(path.parent)
    bus.finish(Seal(**note["seal"]))
    ledger.note(_PENDING, "null")


def _chain(run: CompletedRun, ledger: RowLedger, index: int, folder: Path) -> _Chain:
    name = run.nodes[index].node_id
    chain = _Chain([], [], [], folder / name)
    rows = []
    for number, _, letter, _ in sorted(ledger.dead(name), key=lambda found: _place(found[2].identity)):
        row = _row(letter)
        if row is None:
            chain.broken.append((number, letter))
        else:
            chain.sent.append((number, letter))
            rows.append(row)
    if not rows:
        return chain
    source = chain.folder / "letters.jsonl"
    if not source.exists():
        write_atomically(source, lambda file: _fill(file, rows))
    bus: IDataStream = JsonlStream(f"jsonl://{source}")
    bus.seal()
    for node in run.nodes[index:]:
        again = _again(node, ledger)
        out = JsonlStream(f"jsonl://{chain.folder / node.node_id}.jsonl")
        again.bind_io(bus, out)
        chain.nodes.append(again)
        bus = JsonlStream(out.uri)
    return chain


def _row(letter: DeadLetter) -> dict[str, Any] | None:
    """Return the row of a letter with its id, or None if its line is not a row."""
    if letter.reason == BadLineError.__name__:
        return None
    try:
        row = values.loads(letter.line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    if str(row.get(FIELD)) != letter.identity:
        row[FIELD] = int(letter.identity) if letter.identity.isdecimal() else letter.identity
    return row


def _fill(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("wb") as stream:
        for row in rows:
            stream.write(values.dumps(row) + b"\n")


def _again(node: Node, ledger: RowLedger) -> Node:
    again = Node(
        node.node_id,
        node.parallel_size,
        node.batch_size,
        processes=node.processes,
        writer_config=node.writer_config,
        on_error="dead_letter",
        max_dead_letters=_NO_CAP,
    )
    again.set_processor(node.operator)
    if getattr(node.operator, "ordered", False):
        log, last = _file_log(node), ledger.last(node.node_id)
        again.remembered = partial(committed_rows, log, last.out_end if last else 0)
    return again


def _file_log(node: Node) -> FileLog:
    assert node.output_bus is not None
    log = node.output_bus.log()
    if not isinstance(log, FileLog):
        raise ConfigError(
            f"{node.output_bus.uri} was lost with its process: only files can be redriven into; run the"
            " pipeline again with a file as its output"
        )
    return log


def _left(run: CompletedRun, ledger: RowLedger, chains: list[_Chain]) -> dict[str, float]:
    """Return the remaining budget."""
    spent = [ledger.totals(node.node_id).usage or {} for node in run.nodes]
    spent += [gained.usage or {} for chain in chains for gained in _gained(chain).values()]
    return {name: limit - sum(usage.get(name, 0) for usage in spent) for name, limit in run.budget.items()}


def _run(run: CompletedRun, chain: _Chain, budget: Mapping[str, float]) -> str:
    return run.run_chain(chain.nodes, chain.folder / "state", budget)


def _gained(chain: _Chain) -> dict[str, LedgerTotals]:
    if not chain.sent:
        return {}
    ledger = RowLedger(chain.ledger, fsync=False)
    try:
        return {node.node_id: ledger.totals(node.node_id) for node in chain.nodes}
    finally:
        ledger.close()


def _merge(run: CompletedRun, ledger: RowLedger, chains: list[_Chain]) -> None:
    """Write the new output next to the old one, and record it in the ledger."""
    final = run.nodes[-1]
    log, last = _file_log(final), ledger.last(final.node_id)
    if last is not None:
        check_log(final.node_id, log, last, ledger.ranges(final.node_id))
    files = [log.path, *(chain.output for chain in chains if chain.sent)]
    made = log.path.with_name(f".{log.path.name}.redriven")
    seal = _merged(files, made, final.node_id, run.pipeline_id)
    settled, failed, moved = _letters(chains)
    gained: dict[str, LedgerTotals] = {final.node_id: LedgerTotals()}
    for chain in chains:
        for node, totals in _gained(chain).items():
            gained[node] = _sum(gained.get(node, LedgerTotals()), totals)
    note = {"made": str(made), "path": str(log.path), "seal": asdict(seal)}
    ledger.redriven(
        Redriven(
            final.node_id,
            seal.rows,
            seal.bytes,
            seal.digest,
            seal.text(),
            gained,
            settled,
            failed,
            moved,
            {_PENDING: json.dumps(note), _ROUNDS: str(int(ledger.about(_ROUNDS) or 0) + 1)},
        )
    )


def _merged(files: list[Path], made: Path, node: str, pipeline_id: str) -> Seal:
    """Merge the rows of all files into one, ordered by id, and return its seal."""
    digest, rows, size = xxhash.xxh3_128(), 0, 0
    first = last = None
    with made.open("wb", buffering=CHUNK) as out:
        for identity, line in heapq.merge(*map(_lines, files), key=lambda pair: _place(pair[0])):
            out.write(line)
            digest.update(line)
            rows, size = rows + 1, size + len(line)
            first, last = identity if first is None else first, identity
        out.flush()
        os.fsync(out.fileno())
    return Seal(
        rows,
        size,
        digest.hexdigest(),
        None if first is None else str(first),
        None if last is None else str(last),
        node,
        pipeline_id,
    )


def _lines(file: Path) -> Iterator[tuple[Any, bytes]]:
    with file.open("rb", buffering=CHUNK) as stream:
        for line in stream:
            yield values.loads(line)[FIELD], line


def _place(identity: Any) -> tuple[float, ...]:
    """Return a row's sort key; merging loses no row, whatever the order."""
    try:
        return lineage(identity)
    except ValueError:
        return (math.inf,)


def _letters(
    chains: list[_Chain],
) -> tuple[list[int], list[tuple[int, DeadLetter]], list[tuple[str, DeadLetter]]]:
    """Return the resolved letters, those that failed again, and rows that failed in later nodes."""
    settled, failed, moved = [], [], []
    for chain in chains:
        failed += chain.broken
        if not chain.sent:
            continue
        ledger = RowLedger(chain.ledger, fsync=False)
        again = {letter.row: letter for _, _, letter, _ in ledger.dead(chain.nodes[0].node_id)}
        for node in chain.nodes[1:]:
            moved += [
                (name, DeadLetter(letter.identity, _NOWHERE, letter.reason, letter.error, letter.line))
                for _, name, letter, _ in ledger.dead(node.node_id)
            ]
        ledger.close()
        for row, (number, _letter) in enumerate(chain.sent):
            if row in again:
                failed.append((number, again[row]))
            else:
                settled.append(number)
    return settled, failed, moved


def _sum(one: LedgerTotals, other: LedgerTotals) -> LedgerTotals:
    usage = dict(one.usage or {})
    for name, value in (other.usage or {}).items():
        usage[name] = usage.get(name, 0) + value
    return LedgerTotals(0, one.made + other.made, one.dropped + other.dropped, 0, 0, usage)
