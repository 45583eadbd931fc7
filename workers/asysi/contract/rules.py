"""Validation rules across fields, both for Python and for the API server (CEL)."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from asysi.contract.fields import Path
from asysi.contract.grid import MOST_MEMBERS, members
from asysi.contract.quantity import format_bytes, parse_bytes
from asysi.contract.spec import LABEL_NAME, Model, Positions, Sae, SaeTrain, Sampling, Spec, Tokens
from asysi.contract.variants import WITH_K
from asysi.contract.workloads import PARTS, WORKLOADS

PREPARE_HEAP = 512 * 2**20
"""Memory that prepare needs besides the rings: the interpreter, torch, the model's structure."""
HEAP = 256 * 2**20
"""Minimum memory that any process needs besides the rings: an interpreter with its libraries."""
_OURS = "ASYSI_"
_TAKEN = ("HOME", "HF_HOME", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JOB_COMPLETION_INDEX")
_PACKED = "[.](gz|bz2|xz|zst)$"


@dataclass(frozen=True)
class Problem:
    """A problem with an experiment."""

    path: Path
    """Path of the value: keys as in the file, and list indices."""
    text: str
    """What is wrong and what to do; continues a sentence that begins with the path."""


@dataclass(frozen=True)
class Rule:
    """A validation rule across fields."""

    at: str
    """Path of the part that the rule validates."""
    cel: str
    """The CEL rule for the API server; `self` is the part."""
    message: str
    """Message of the API server. The Python check gives more detail."""
    check: Callable[[Spec], Iterator[Problem]]
    """Yields the problems."""


def rule_problems(spec: Spec) -> list[Problem]:
    """Return the violations of rules in `spec`, in the order of RULES."""
    return [problem for rule in RULES for problem in rule.check(spec)]


def trainer_problems(trainers: list[SaeTrain]) -> list[str]:
    """Return the violations of the rules for `spec.sae.train`, for trainers that are in no experiment.

    Each begins with the trainer's name and the path within it, like `trainer main: matryoshka.widths`.
    """
    values: dict[str, Any] = {"sae": Sae.model_construct(train=trainers)}  # all that these rules read
    spec = Spec.model_construct(**values)
    found = (one for rule in RULES if rule.at.startswith("spec.sae.train") for one in rule.check(spec))
    return [
        f"trainer {trainers[int(one.path[3])].name}: {'.'.join(map(str, one.path[4:]))} {one.text}"
        for one in found
    ]


def _one_workload(spec: Spec) -> Iterator[Problem]:
    chosen = [name for name, field in PARTS.items() if getattr(spec.workload, field) is not None]
    if len(chosen) != 1:
        has = "none is given" if not chosen else f"{' and '.join(chosen)} are given"
        yield Problem(("spec", "workload"), f"takes exactly one of {', '.join(PARTS)}; {has}")


def _reads_data(name: str) -> Rule:
    """Return the rule that a workload that reads text requires data."""

    def check(spec: Spec) -> Iterator[Problem]:
        if getattr(spec.workload, PARTS[name]) is not None and spec.data is None:
            yield Problem(
                ("spec", "data"),
                f"is needed by workload.{name}: say what the model reads, like `uri: jsonl://text.jsonl`",
            )

    return Rule("spec", f"!has(self.workload.{name}) || has(self.data)", f"workload.{name} needs data", check)


def _rates_are_ordered(spec: Spec) -> Iterator[Problem]:
    sampling: Sampling = spec.capture.sampling
    if sampling.min_rate > sampling.rate:
        yield Problem(
            ("spec", "capture", "sampling", "minRate"),
            f"is {sampling.min_rate:g}, more than rate ({sampling.rate:g}): lower minRate or raise rate",
        )


def _positions_are_counted(spec: Spec) -> Iterator[Problem]:
    positions: Positions = spec.capture.positions
    if (positions.mode == "random") != (positions.count is not None):
        yield Problem(("spec", "capture", "positions", "count"), "is only valid with `mode: random`")


def _gradients_have_a_loss(spec: Spec) -> Iterator[Problem]:
    scan = spec.workload.scan
    wanted = [kind for kind in spec.capture.kinds if kind != "activations"]
    if wanted and scan is not None and scan.loss == "none":
        yield Problem(
            ("spec", "capture", "kinds"),
            f"asks for {' and '.join(wanted)}, but workload.scan.loss is none, so the model runs forward"
            " only, in inference mode: set workload.scan.loss to lm, module or python://package.module:function",
        )


def _parameters_are_captured(spec: Spec) -> Iterator[Problem]:
    if spec.capture.parameters and "parameterGradients" not in spec.capture.kinds:
        yield Problem(
            ("spec", "capture", "parameters"),
            "names parameters, but kinds does not ask for parameterGradients: add it to kinds, or drop them",
        )


def _few_enough_fire(spec: Spec) -> Iterator[Problem]:
    for index, train in enumerate(_trainers(spec)):
        for one in members(train):
            if one.variant in WITH_K and one.k > one.latents:
                yield Problem(
                    ("spec", "sae", "train", index, "k"),
                    f"is {one.k}, but the trainer has only {one.latents} latents: lower k or raise latents",
                )
                break


def _grids_are_small(spec: Spec) -> Iterator[Problem]:
    for index, train in enumerate(_trainers(spec)):
        if (count := len(members(train))) > MOST_MEMBERS:
            yield Problem(
                ("spec", "sae", "train", index, "grid"),
                f"has {count} combinations, more than {MOST_MEMBERS}: use several trainers or fewer values",
            )


def _widths_are_nested(spec: Spec) -> Iterator[Problem]:
    for index, train in enumerate(_trainers(spec)):
        widths, latents = train.matryoshka.widths, min(one.latents for one in members(train))
        if widths and (widths != sorted(set(widths)) or widths[-1] > latents):
            yield Problem(
                ("spec", "sae", "train", index, "matryoshka", "widths"),
                f"is {widths}: give ascending numbers of latents, at most {latents} (latents)",
            )


def _trainers_have_names(spec: Spec) -> Iterator[Problem]:
    counts = Counter(train.name for train in _trainers(spec))
    others = Counter(one.name for train in _trainers(spec) for one in members(train))
    for index, train in enumerate(_trainers(spec)):
        twice = [one.name for one in members(train) if others[one.name] > 1]
        if twice and counts[train.name] == 1:
            yield Problem(
                ("spec", "sae", "train", index, "name"),
                f"gives an autoencoder the name {twice[0]!r}, which another trainer has: choose another name",
            )
        if counts[train.name] > 1:
            yield Problem(
                ("spec", "sae", "train", index, "name"),
                f"is {train.name!r} for {counts[train.name]} trainers: give each its own",
            )


def _somebody_consumes(spec: Spec) -> Iterator[Problem]:
    if spec.sae is None and not spec.archive.enabled:
        yield Problem(
            ("spec", "archive", "enabled"), "is false and sae is off, so nothing reads the stream: enable one"
        )


def _prepare_holds_the_rings(spec: Spec) -> Iterator[Problem]:
    capture, bus, limit = (
        parse_bytes(q) for q in (spec.capture.size, spec.bus.size, spec.resources.prepare.memory)
    )
    need = capture + bus + PREPARE_HEAP
    if need > limit:
        yield Problem(
            ("spec", "resources", "prepare", "memory"),
            f"is {spec.resources.prepare.memory}, but capture.size {spec.capture.size} + bus.size"
            f" {spec.bus.size} + {format_bytes(PREPARE_HEAP)} for prepare itself = {need / 2**20:.0f}Mi:"
            " raise it, or make the rings smaller",
        )


def _running_limits_hold_the_rings(spec: Spec) -> Iterator[Problem]:
    limits = {_CONTAINERS.get(path[-1], path[-1]): limit for path, limit in _limits(spec).items()}
    rings = parse_bytes(spec.capture.size) + parse_bytes(spec.bus.size)
    heaps, held = HEAP * len(limits), sum(parse_bytes(limit) for limit in limits.values())
    if rings + heaps > held:
        yield Problem(
            ("spec", "bus", "size"),
            f"is {spec.bus.size}, but the memory limits of {', '.join(limits)} add up to {format_bytes(held)}"
            f", and together they hold {format_bytes(rings)} of rings (bus.size and capture.size) +"
            f" {len(limits)} × {format_bytes(HEAP)} of processes: raise a limit, or make the rings smaller",
        )


def _host_holds_its_shm(spec: Spec) -> Iterator[Problem]:
    host = spec.resources.host
    if parse_bytes(host.shm) + HEAP > parse_bytes(host.memory):
        yield Problem(
            ("spec", "resources", "host", "shm"),
            f"is {host.shm}, but it is part of resources.host.memory, {host.memory}, of which the process"
            f" needs {format_bytes(HEAP)}: raise memory, or lower shm",
        )


def _each_limit_holds_a_process(spec: Spec) -> Iterator[Problem]:
    for path, limit in _limits(spec).items():
        if path[-1] != "host" and parse_bytes(limit) < HEAP:  # the host's limit includes its /dev/shm
            yield Problem(
                ("spec", *path, "memory"),
                f"is {limit}; a process needs {format_bytes(HEAP)} at least: raise it",
            )


def _tolerations_are_whole(spec: Spec) -> Iterator[Problem]:
    for index, one in enumerate(spec.scheduling.tolerations):
        path = ("spec", "scheduling", "tolerations", index)
        if one.key is None and one.operator != "Exists":
            yield Problem((*path, "operator"), "must be Exists where no key is given: give a key, or Exists")
        if one.operator == "Exists" and one.value:
            yield Problem(
                (*path, "value"), "is only valid with `operator: Equal`: Exists matches any value; remove it"
            )
        if one.toleration_seconds is not None and one.effect != "NoExecute":
            yield Problem((*path, "tolerationSeconds"), "is only valid with `effect: NoExecute`")


def _inputs_are_distinct(spec: Spec) -> Iterator[Problem]:
    counts = Counter(one.claim for one in spec.inputs)
    for index, one in enumerate(spec.inputs):
        if counts[one.claim] > 1:
            yield Problem(
                ("spec", "inputs", index, "claim"),
                f"is {one.claim!r} {counts[one.claim]} times: name each claim once",
            )


def _a_named_claim_is_as_it_is(spec: Spec) -> Iterator[Problem]:
    output = spec.output
    made = {
        "storageClassName": output.storage_class_name is None,
        "accessModes": output.access_modes == ["ReadWriteOnce"],
        "whenDeleted": output.when_deleted == "Delete",
    }
    if output.claim is not None:
        for field, default in made.items():
            if not default:
                yield Problem(
                    ("spec", "output", field),
                    f"only applies to a created claim; {output.claim} is an existing claim and is not "
                    "modified: remove either",
                )


def _revision_is_for_the_hub(spec: Spec) -> Iterator[Problem]:
    model: Model = spec.model
    if model.revision is not None and not model.uri.startswith("hf://"):
        yield Problem(("spec", "model", "revision"), f"is only for hf:// models, not for {model.uri!r}")


def _hash_is_for_files(spec: Spec) -> Iterator[Problem]:
    if spec.model.sha256 is not None and spec.model.uri.startswith("python://"):
        yield Problem(
            ("spec", "model", "sha256"), "is for models in files; a python:// factory has none to hash"
        )


def _separator_is_for_concat(spec: Spec) -> Iterator[Problem]:
    tokens: Tokens | None = spec.data.tokens if spec.data else None
    if tokens is not None and tokens.separator_token is not None and tokens.packing != "concat":
        yield Problem(
            ("spec", "data", "tokens", "separatorToken"),
            f"goes with `packing: concat`; `packing: {tokens.packing}` does not join documents",
        )


def _a_shard_holds_a_process(spec: Spec) -> Iterator[Problem]:
    pipeline = spec.data.pipeline if spec.data else None
    if pipeline is not None and parse_bytes(pipeline.memory) < HEAP:
        yield Problem(
            ("spec", "data", "pipeline", "memory"),
            f"is {pipeline.memory}; a process needs {format_bytes(HEAP)} at least: raise it",
        )


def _keys_are_variables_of_their_own(spec: Spec) -> Iterator[Problem]:
    key = spec.model.secret_ref.key if spec.model.secret_ref else None
    if key is not None and (key.startswith(_OURS) or key in _TAKEN):
        yield Problem(
            ("spec", "model", "secretRef", "key"),
            f"is {key}, a reserved variable: give the Secret's key another name",
        )
    refs = spec.data.pipeline.secret_refs if spec.data and spec.data.pipeline else []
    counts = Counter(ref.key for ref in refs)
    for index, ref in enumerate(refs):
        path = ("spec", "data", "pipeline", "secretRefs", index, "key")
        if ref.key is not None and counts[ref.key] > 1:
            yield Problem(path, f"is {ref.key} {counts[ref.key]} times: each variable has one value")
        elif ref.key is not None and (ref.key.startswith(_OURS) or ref.key in _TAKEN):
            yield Problem(path, f"is {ref.key}, a reserved variable: give the Secret's key another name")


def _shards_split_plain_files(spec: Spec) -> Iterator[Problem]:
    if spec.data is None or spec.data.pipeline is None or spec.data.pipeline.shards == 1:
        return
    if packed := re.search(_PACKED, spec.data.uri):
        yield Problem(
            ("spec", "data", "pipeline", "shards"),
            f"is {spec.data.pipeline.shards}, but a {packed[0]} file cannot be split: unpack it, or take 1",
        )


def _queues_are_for_consumer_mode(spec: Spec) -> Iterator[Problem]:
    if spec.mode == "HPC" and spec.bus.redis is not None:
        yield Problem(
            ("spec", "bus", "redis"), "belongs to mode CONSUMER; mode HPC has the shared-memory ring: drop it"
        )
    if spec.mode == "HPC" and spec.consumers.replicas > 1:
        yield Problem(
            ("spec", "consumers", "replicas"), "belongs to mode CONSUMER; mode HPC has one pod: drop it"
        )


def _trainers(spec: Spec) -> list[SaeTrain]:
    return spec.sae.train if spec.sae is not None else []


def _limits(spec: Spec) -> dict[tuple[str, ...], str]:
    """Return the memory limits of the containers that run concurrently, by path within the spec."""
    return {
        ("resources", "host"): spec.resources.host.memory,
        ("resources", "hook"): spec.resources.hook.memory,
        ("resources", "finish"): spec.resources.finish.memory,
        **({("sae",): spec.sae.memory} if spec.sae is not None else {}),
        **({("archive",): spec.archive.memory} if spec.archive.enabled else {}),
    }


_CONTAINERS = {"archive": "archiver"}
"""Containers with a different name than their part of the spec."""


def _holds_a_process(part: str) -> str:
    return f"quantity({part}.memory).compareTo(quantity('{format_bytes(HEAP)}')) >= 0"


def _beside_heap(memory: str) -> str:
    """Return a CEL expression for a memory limit minus the process's own heap."""
    return f"quantity({memory}).sub(quantity('{format_bytes(HEAP)}'))"


RULES = (
    Rule(
        "spec.workload",
        f"[{', '.join(f'has(self.{name})' for name in PARTS)}].filter(given, given).size() == 1",
        f"workload takes exactly one of {', '.join(PARTS)}",
        _one_workload,
    ),
    *(_reads_data(name) for name, row in WORKLOADS.items() if row.rereadable),
    Rule(
        "spec.capture.sampling",
        "self.minRate <= self.rate",
        "minRate must not be more than rate",
        _rates_are_ordered,
    ),
    Rule(
        "spec.capture.positions",
        "(self.mode == 'random') == has(self.count)",
        "count is only valid with mode random",
        _positions_are_counted,
    ),
    Rule(
        "spec.capture",
        "self.parameters.size() == 0 || self.kinds.exists(kind, kind == 'parameterGradients')",
        "parameters go with the kind parameterGradients",
        _parameters_are_captured,
    ),
    Rule(
        "spec",
        "!has(self.workload.scan) || self.workload.scan.loss != 'none'"
        " || self.capture.kinds.all(kind, kind == 'activations')",
        "gradients need a loss: set workload.scan.loss",
        _gradients_have_a_loss,
    ),
    Rule(
        "spec.sae.train[]",
        f"!(self.variant in {list(WITH_K)}) || self.k <= self.latents",
        "k must not be more than latents",
        _few_enough_fire,
    ),
    Rule(
        "spec.sae.train[]",
        "!has(self.matryoshka.widths) || (self.matryoshka.widths.all(one, one <= self.latents"
        " && self.matryoshka.widths.exists_one(other, other == one)) && self.matryoshka.widths.isSorted())",
        "matryoshka.widths must be ascending and at most latents",
        _widths_are_nested,
    ),
    Rule(
        "spec.sae.train[]",
        " * ".join(f"[1, self.grid.{name}.size()].max()" for name in ("k", "latents", "seeds"))
        + f" <= {MOST_MEMBERS}",
        f"a grid has at most {MOST_MEMBERS} combinations",
        _grids_are_small,
    ),
    Rule(
        "spec.sae.train",
        "self.all(one, self.exists_one(other, other.name == one.name))",
        "each trainer needs its own name",
        _trainers_have_names,
    ),
    Rule(
        "spec",
        "(has(self.sae) && self.sae.enabled) || self.archive.enabled",
        "sae and archive are both off: the stream has no reader",
        _somebody_consumes,
    ),
    Rule(
        "spec",
        "quantity(self.capture.size).add(quantity(self.bus.size))"
        f".add(quantity('{format_bytes(PREPARE_HEAP)}'))"
        ".compareTo(quantity(self.resources.prepare.memory)) <= 0",
        f"resources.prepare.memory must hold capture.size + bus.size + {format_bytes(PREPARE_HEAP)}",
        _prepare_holds_the_rings,
    ),
    Rule(
        "spec",
        "quantity(self.resources.host.memory).add(quantity(self.resources.hook.memory))"
        ".add(quantity(self.resources.finish.memory))"
        f".sub(quantity('{format_bytes(3 * HEAP)}'))"
        f".add(has(self.sae) && self.sae.enabled ? {_beside_heap('self.sae.memory')} : quantity('0'))"
        f".add(self.archive.enabled ? {_beside_heap('self.archive.memory')} : quantity('0'))"
        ".compareTo(quantity(self.capture.size).add(quantity(self.bus.size))) >= 0",
        "the memory limits of the running containers must hold capture.size + bus.size + "
        f"{format_bytes(HEAP)} for each of them",
        _running_limits_hold_the_rings,
    ),
    Rule(
        "spec.resources.host",
        f"quantity(self.shm).add(quantity('{format_bytes(HEAP)}')).compareTo(quantity(self.memory)) <= 0",
        f"host.memory must hold shm + {format_bytes(HEAP)}",
        _host_holds_its_shm,
    ),
    Rule(
        "spec",
        f"{_holds_a_process('self.resources.hook')} && {_holds_a_process('self.resources.finish')}"
        f" && (!has(self.sae) || !self.sae.enabled || {_holds_a_process('self.sae')})"
        f" && (!self.archive.enabled || {_holds_a_process('self.archive')})",
        "resources.hook.memory, resources.finish.memory, sae.memory and archive.memory must be"
        f" {format_bytes(HEAP)} at least",
        _each_limit_holds_a_process,
    ),
    Rule(
        "spec.scheduling",
        f"self.nodeSelector.all(key, key.matches(r'{LABEL_NAME}'))",
        "nodeSelector's keys must be names of labels",
        lambda _spec: iter(()),  # the models validate keys themselves
    ),
    Rule(
        "spec.scheduling.tolerations[]",
        "(has(self.key) || self.operator == 'Exists')"
        " && (self.operator == 'Equal' || !has(self.value) || self.value == '')"
        " && (!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute'))",
        "without a key operator is Exists; a value goes with Equal, tolerationSeconds with effect NoExecute",
        _tolerations_are_whole,
    ),
    Rule(
        "spec.inputs",
        "self.all(one, self.exists_one(other, other.claim == one.claim))",
        "each input must be listed once",
        _inputs_are_distinct,
    ),
    Rule(
        "spec.output",
        "!has(self.claim) || (!has(self.storageClassName) && self.accessModes == ['ReadWriteOnce']"
        " && self.whenDeleted == 'Delete')",
        "storageClassName, accessModes and whenDeleted only apply to a created claim: remove them, or claim",
        _a_named_claim_is_as_it_is,
    ),
    Rule(
        "spec.model",
        "!has(self.revision) || self.uri.startsWith('hf://')",
        "revision is for hf:// models",
        _revision_is_for_the_hub,
    ),
    Rule(
        "spec.model",
        "!has(self.sha256) || !self.uri.startsWith('python://')",
        "sha256 is for models in files",
        _hash_is_for_files,
    ),
    Rule(
        "spec.data.tokens",
        "!has(self.separatorToken) || self.packing == 'concat'",
        "separatorToken goes with packing concat",
        _separator_is_for_concat,
    ),
    Rule(
        "spec.data.pipeline",
        _holds_a_process("self"),
        f"memory must be {format_bytes(HEAP)} at least",
        _a_shard_holds_a_process,
    ),
    Rule(
        "spec.data.pipeline",
        "self.secretRefs.all(one, !has(one.key) || (!one.key.startsWith('"
        + _OURS
        + f"') && !(one.key in {list(_TAKEN)})"
        " && self.secretRefs.exists_one(other, has(other.key) && other.key == one.key)))",
        "each key of secretRefs must be unique, and not a reserved variable",
        _keys_are_variables_of_their_own,
    ),
    Rule(
        "spec.data",
        "!has(self.pipeline) || self.pipeline.shards == 1 || !self.uri.matches('" + _PACKED + "')",
        "shards split plain files: unpack data.uri, or take one shard",
        _shards_split_plain_files,
    ),
    Rule(
        "spec",
        "self.mode == 'CONSUMER' || (!has(self.bus.redis) && self.consumers.replicas == 1)",
        "bus.redis and consumers.replicas belong to mode CONSUMER",
        _queues_are_for_consumer_mode,
    ),
)
"""All rules, in the order in which problems are reported."""
