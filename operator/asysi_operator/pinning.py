"""Which containers have exclusive CPUs: expected from the spec, and as granted by the node. Pure."""

from collections.abc import Mapping

from asysi.contract.cpus import parse_cpu_list
from asysi.contract.runtime import Container
from asysi.contract.spec import Spec
from asysi_operator.manifests.resources import containers_of, of_container

PINNED = (Container.HOST, Container.HOOK, Container.SAE, Container.ARCHIVER)
"""Containers of the stream. The others run before it, or are idle while it runs."""

Verdict = tuple[str, str, str]
"""Status, reason and message of the condition CPUPinned."""


def whole(spec: Spec) -> dict[str, int]:
    """Return the stream containers that request whole CPUs, and how many."""
    asked = {one: of_container(spec, one).cpus for one in containers_of(spec) if one in PINNED}
    return {str(one): int(cpus) for one, cpus in asked.items() if cpus >= 1 and cpus == int(cpus)}


def fractional(spec: Spec) -> list[str]:
    """Return the stream containers that request fractional CPUs and therefore share."""
    pinned = whole(spec)
    return [str(one) for one in containers_of(spec) if one in PINNED and str(one) not in pinned]


def judge(spec: Spec, cpu_sets: Mapping[str, str]) -> Verdict:
    """Return whether the stream containers have exclusive CPUs.

    Args:
        spec: the experiment's spec.
        cpu_sets: CPUs that each container reports it may use, as in `taskset -c`; empty before they run.
    """
    asked, shared = whole(spec), fractional(spec)
    got = {name: parse_cpu_list(text) for name, text in cpu_sets.items()}
    unknown = [name for name in asked if name not in got]
    exclusive = {name for name, cpus in asked.items() if _exclusive(name, cpus, got)}
    pinned = [f"{name} to {cpu_sets[name]}" for name in asked if name in exclusive]
    said = f"pinned: {', '.join(pinned)}; " if pinned else ""
    if asked and not unknown and not exclusive:
        sets = ", ".join(f"{name} {cpu_sets[name]}" for name in asked)
        return (
            "False",
            "NotExclusive",
            f"the node grants no exclusive CPUs (probably its CPU manager policy is none): {sets}",
        )
    if shared:
        return "False", "FractionalCPU", f"{said}{', '.join(shared)} share CPUs: give each whole CPUs to pin"
    if unknown:
        return "Unknown", "NotKnownYet", f"{said}{', '.join(unknown)} have not reported their CPUs yet"
    if missing := [name for name in asked if name not in exclusive]:
        return "False", "NotExclusive", f"{said}{', '.join(missing)} have no exclusive CPUs"
    return "True", "Exclusive", f"pinned: {', '.join(pinned)}"


def _exclusive(name: str, cpus: int, got: Mapping[str, frozenset[int]]) -> bool:
    mine = got.get(name, frozenset())
    others = (theirs for other, theirs in got.items() if other != name)
    return len(mine) == cpus and all(mine.isdisjoint(theirs) for theirs in others)
