"""CPU binding of the containers in a local run."""

import os
from collections.abc import Mapping

from asysi.contract.cpus import parse_cpu_list
from asysi.contract.errors import ConfigError


def bound(binding: Mapping[str, str]) -> dict[str, frozenset[int]]:
    """Return the CPUs that each container is bound to.

    Args:
        binding: `resources.binding.cpus`: lists as in `taskset -c`, `0`, `0-3`, `1,3`.

    Raises:
        ConfigError: none of a container's CPUs is available.
    """
    present = os.sched_getaffinity(0)
    chosen = {name: parse_cpu_list(listed) & present for name, listed in binding.items()}
    problems = [
        f"spec.resources.binding.cpus.{name} is {binding[name]}, but this process may only use "
        f"{','.join(str(cpu) for cpu in sorted(present))}: choose from these, or omit the binding"
        for name, cpus in chosen.items()
        if not cpus
    ]
    if problems:
        raise ConfigError(*problems)
    return chosen
