"""Sharding: splits a large input into n parts (`UnifiedPipeline(shard=(i, n))`) and merges their outputs.

Parts are split at line boundaries; rows keep their numbers in the whole input, so the merged output is byte
for byte that of a single run. Each part has its own ledger.
"""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from asysi.contract.errors import ConfigError
from asysi.pipeline.ledger.ledger import RowLedger
from asysi.pipeline.run.run_state import read_image
from asysi.pipeline.streams.data_streams import FileStream, IDataStream, StreamFactory
from asysi.pipeline.streams.input_files import same
from asysi.pipeline.streams.row_log import FileLog
from asysi.pipeline.streams.seal import START_OVER, ChangedError, Seal, SealError, prefix_digest
from asysi.pipeline.streams.source import CHUNK, FilesFeed, Window


def window(bus: IDataStream, index: int, count: int) -> Window:
    """Return the part of a stream that shard `index` of `count` reads; counts the lines before it.

    Raises:
        ConfigError: there is no such shard, or the stream cannot be split.
    """
    if not 0 <= index < count:
        raise ConfigError(f"there is no shard {index} of {count}: they are numbered from 0")
    if (
        not isinstance(bus, FileStream)
        or not bus.direct
        or not isinstance(feed := bus.source().feed, FilesFeed)
    ):
        raise ConfigError(f"{bus.uri} cannot be split: only uncompressed files of JSON lines can")
    size = feed.size or 0
    begin, end = feed.line_from(size * index // count), feed.line_from(size * (index + 1) // count)
    found = Window(begin, end, feed.lines_before(begin))
    feed.close()
    return found


def refuse_foreign(output: IDataStream, pipeline_id: str, *, overwrite: bool) -> None:
    """Reject shards whose merged output already exists and is not theirs, before they run.

    Raises:
        ConfigError: it exists and may not be overwritten.
    """
    seal = output.read_seal()
    if not output.exists() or (seal is not None and seal.pipeline_id == pipeline_id):
        return
    if not overwrite:
        raise ConfigError(f"{output.uri} already exists: delete it, name another output, or {START_OVER}")
    with suppress(FileNotFoundError):  # another shard has removed it
        output.remove()


def merge(folder: Path) -> Seal:
    """Merge the outputs of all shards in a results folder, in order, and return the seal.

    Idempotent: may be called again after a crash, or after a redrive of a shard.

    Raises:
        ConfigError: a shard is missing or not completed, the shards do not belong together, or another file
            exists at their output.
        SealError: a shard's output differs from its ledger.
    """
    images = _images(folder)
    output = StreamFactory.create(_output(images), folder / "spool")
    seals = [_seal(Path(image["results_dir"]), image["nodes"][-1]) for image in images]
    parent = xxhash.xxh3_128("".join(seal.digest for seal in seals).encode()).hexdigest()
    name = images[0]["pipeline_id"]
    before = output.read_seal() if output.exists() else None
    if before is not None and before.pipeline_id != name:
        raise ConfigError(f"{output.uri} exists and is not of {name}: delete it, then merge again")
    if before is not None and before.parent == parent:
        try:
            output.verify()
        except ChangedError as error:
            raise SealError(f"{error.facts}. Restore it, or delete it and merge again") from None
        return before
    output.unseal()
    log = output.log()
    log.open(0)
    for image in images:
        _append(log, Path(image["results_dir"]), image["nodes"][-1])
    log.sync()
    ends = [seal for seal in seals if seal.rows]
    output.finish(
        Seal(
            sum(seal.rows for seal in seals),
            log.size,
            log.digest.hexdigest(),
            ends[0].first if ends else None,
            ends[-1].last if ends else None,
            images[0]["nodes"][-1]["node_id"],
            name,
            parent,
        )
    )
    log.close()
    found = output.read_seal()
    assert found is not None
    return found


def _images(folder: Path) -> list[dict[str, Any]]:
    images = [read_image(file.parent) for file in sorted(folder.glob("shard-*/runtime.json"))]
    if not images:
        raise ConfigError(f"{folder} has no shards")
    count = images[0]["shard"][1]
    found = {image["shard"][0] for image in images}
    missing = [f"{index} is missing" for index in range(count) if index not in found]
    open_ones = [
        f"{image['shard'][0]} is {image['status']}" for image in images if image["status"] != "completed"
    ]
    if missing or open_ones:
        raise ConfigError(
            f"{folder}: shards are not done: {', '.join([*missing, *open_ones])}: run or resume them"
        )
    for name in ("operators", "input_uri", "output_uri"):
        if any(image[name] != images[0][name] for image in images):
            raise ConfigError(f"{folder}: the shards differ in {name}: {START_OVER}")
    if not all(same(image.get("inputs"), images[0].get("inputs")) for image in images):
        raise ConfigError(f"{folder}: the shards have read different input files: {START_OVER}")
    images = sorted(images, key=lambda image: int(image["shard"][0]))
    for before, after in pairwise(images):
        end, begin = before["window"]["end"], after["window"]["begin"]
        if end != begin:
            raise ConfigError(
                f"{folder}: shard {before['shard'][0]} ends at byte {end} of the input, and shard"
                f" {after['shard'][0]} begins at {begin}: the input was changed between them; {START_OVER}"
            )
    return images


def _output(images: list[dict[str, Any]]) -> str:
    uri = images[0]["output_uri"]
    if not uri:
        raise ConfigError("the shards have no output_uri of their own: give the pipeline one")
    return str(uri)


def _seal(folder: Path, node: dict[str, Any]) -> Seal:
    """Return the seal in a shard's ledger."""
    ledger = RowLedger(folder / "ledger.sqlite", fsync=False)
    seal = ledger.finished(node["node_id"])
    ledger.close()
    if seal is None:
        raise ConfigError(f"{folder}: its ledger does not record that it is done: resume it")
    return Seal.of(seal, str(folder))


def _append(log: Any, folder: Path, node: dict[str, Any]) -> None:
    """Append a shard's rows, verifying their digest."""
    ledger = RowLedger(folder / "ledger.sqlite", fsync=False)
    last = ledger.last(node["node_id"])
    ledger.close()
    rows = StreamFactory.create(node["output_uri"], folder / "spool").log()
    size, digest = (last.out_end, last.out_digest) if last else (0, None)
    if not isinstance(rows, FileLog):
        raise ConfigError(f"{node['output_uri']} was lost with its process: shards write files")
    with rows.path.open("rb") as stream:
        running = prefix_digest(stream, 0)
        while size > 0 and (data := stream.read(min(CHUNK, size))):
            running.update(data)
            log.append(data)
            size -= len(data)
    if size or (digest is not None and running.hexdigest() != digest):
        raise SealError(
            f"{node['output_uri']} is not what its ledger says: restore it, or run that shard again"
        )
