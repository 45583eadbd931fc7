"""Which files of a folder hold a checkpoint: by its index, by their numbers, or by their names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from asysi.contract.errors import ConfigError
from asysi.weights.errors import EscapingPathError, MissingShardError, PickleError, WeightsError
from asysi.weights.reading.places import Place, refuse_empty

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMATS = (".safetensors", ".gguf", ".npz")
_NUMBERED = re.compile(
    r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.safetensors|\.gguf)$"
)


@dataclass(frozen=True, slots=True)
class Shards:
    """The files to open, and what the folder says about them."""

    files: list[str]
    index: dict[str, str] = field(default_factory=dict)
    """File of each tensor according to the index; empty without an index."""
    problems: list[WeightsError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_shards(place: Place) -> Shards:
    """Return the files that hold the checkpoint.

    Raises:
        PickleError: there are only pickles.
        ConfigError: there are no weights, or several models to choose from.
    """
    if place.single:
        if place.single.endswith(".index.json"):
            raise ConfigError(f"{place.full(place.single)} is an index: give its folder")
        _refuse_pickles([place.single], place)
        return Shards([place.single], notes=_alone(place.single))
    names = place.names()
    files = [name for name in names if place.exists(name)]
    index_file = INDEX if INDEX in files else None
    index_file = index_file or next(
        (name for name in files if name.endswith(".safetensors.index.json")), None
    )
    if index_file is not None:
        return _indexed(place, index_file, files)
    for suffix in FORMATS:
        if found := [name for name in files if name.endswith(suffix)]:
            return _unindexed(found, place)
    _refuse_pickles(files, place)
    raise refuse_empty(place)


def _alone(name: str) -> list[str]:
    if (found := _NUMBERED.match(name)) and int(found["total"]) > 1:
        return [f"{name} is one of {int(found['total'])} shards: give the folder for the whole model"]
    return []


def _unindexed(found: Sequence[str], place: Place) -> Shards:
    """Choose among weights without an index: the single file, or the files numbered as one set."""
    if SINGLE in found:
        return Shards([SINGLE], notes=_unread(found, [SINGLE], f"{SINGLE} is the model"))
    sets: dict[tuple[str, str, str], list[str]] = {}
    for name in found:
        if match := _NUMBERED.match(name):
            sets.setdefault((match["stem"], match["total"], match["suffix"]), []).append(name)
    if len(sets) > 1 or (found[0].endswith(".gguf") and len(found) > max(1, sum(map(len, sets.values())))):
        raise ConfigError(f"{place.full('')} holds several models: give one of {', '.join(found[:8])}")
    if not sets:
        return Shards(list(found))
    ((stem, total, suffix), members), *_ = sets.items()
    problems: list[WeightsError] = [
        MissingShardError(
            f"{name}: the other files' names say that there are {int(total)} shards, and it is not there; "
            "fetch it"
        )
        for number in range(1, int(total) + 1)
        if (name := f"{stem}-{number:05d}-of-{total}{suffix}") not in members
    ]
    return Shards(
        members, problems=problems, notes=_unread(found, members, "the numbered files are the model")
    )


def _indexed(place: Place, index_file: str, files: Sequence[str]) -> Shards:
    try:
        weight_map = json.loads(place.text(index_file))["weight_map"]
        index = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place.full(index_file)} is not an index of safetensors ({type(error).__name__}: {error}); "
            "fetch it again"
        ) from error
    stored = [name for name in files if name.endswith(".safetensors")]
    wanted = dict.fromkeys(index.values())
    if stored and not any(_escapes(shard) or place.exists(shard) for shard in wanted):
        rest = _unindexed(stored, place)
        gone, read = ", ".join(list(wanted)[:3]), ", ".join(rest.files[:3])
        said = f"{index_file} is stale: it names {gone}, which are not there; read instead: {read}"
        return Shards(rest.files, index, rest.problems, [said, *rest.notes])
    problems: list[WeightsError] = []
    shards = []
    for shard in wanted:
        lost = tuple(name for name, file in index.items() if file == shard)
        if _escapes(shard):
            problems.append(
                EscapingPathError(
                    f"{index_file}: the shard {shard!r} leads out of the checkpoint's folder, so it is not "
                    "opened; take the checkpoint from a source that you trust",
                    lost,
                )
            )
        elif not place.exists(shard):
            problems.append(
                MissingShardError(f"{shard}: the index names it and it is not there; fetch it", lost)
            )
        else:
            shards.append(shard)
    return Shards(shards, index, problems, _unread(stored, shards, f"{index_file} does not name them"))


def _unread(found: Sequence[str], read: Sequence[str], why: str) -> list[str]:
    rest = [name for name in found if name not in read]
    return [f"not read: {', '.join(rest[:5])}{' …' if len(rest) > 5 else ''}; {why}"] if rest else []


def _escapes(shard: str) -> bool:
    path = PurePosixPath(shard)
    return path.is_absolute() or ".." in path.parts or "\\" in shard or "\0" in shard or not path.parts


def _refuse_pickles(names: Sequence[str], place: Place) -> None:
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise PickleError(
            f"pickle checkpoint refused: {place.full('')} holds {', '.join(pickles[:5])} and no safetensors. "
            "A pickle can run any code when it is loaded. Convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        )
