"""`python -m asysi_operator`: runs the operator. Each option can also be set by an environment variable."""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from asysi import __version__
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Exit
from asysi_operator.allowed import Allowed
from asysi_operator.manifests import IMAGE, PULL_POLICIES

if TYPE_CHECKING:
    from asysi_operator.cluster import Cluster
    from asysi_operator.controller import Controller
    from asysi_operator.watching import Watches

METRICS_PORT = 9100
DEFINED_SECONDS = 2.0
"""Seconds between checks for the ScanExperiment CRD."""
SWITCH_SECONDS = 0.001
"""Interpreter switch interval in seconds: short, because most threads only hand over what they received."""
log = logging.getLogger("asysi.operator")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LOG_LEVELS = ("debug", "info", "warning", "error")


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; a missing option comes from the environment, then from the default."""
    parser = argparse.ArgumentParser("python -m asysi_operator", description="The operator of A-Sys-I.")
    parser.add_argument(
        "--namespace",
        action="append",
        default=[name for name in _variable("NAMESPACES", "").split(",") if name],
        help="namespace to watch; repeatable; default: all (ASYSI_OPERATOR_NAMESPACES, comma-separated)",
    )
    parser.add_argument(
        "--image",
        default=_variable("IMAGE", IMAGE),
        help="container image for experiments (ASYSI_OPERATOR_IMAGE)",
    )
    parser.add_argument(
        "--image-pull-policy",
        choices=PULL_POLICIES,
        default=_variable("IMAGE_PULL_POLICY", PULL_POLICIES[0]),
        help="image pull policy for that image (ASYSI_OPERATOR_IMAGE_PULL_POLICY)",
    )
    parser.add_argument(
        "--allowed",
        type=Allowed.model_validate_json,
        default=_variable("ALLOWED", "{}"),
        metavar="JSON",
        help="what experiments may choose, as in the chart's value `allowed`: serviceAccounts (none unless"
        " named), priorityClasses, runtimeClasses, nodeLabels, taints, images, cpus, memory, gpus"
        " (ASYSI_OPERATOR_ALLOWED)",
    )
    parser.add_argument(
        "--metrics-readers",
        type=_peers,
        default=_variable("METRICS_READERS", "") or None,
        metavar="JSON",
        help="list of NetworkPolicy peers that may read metrics and status of the pods; unset allows all"
        " (ASYSI_OPERATOR_METRICS_READERS)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=_variable("METRICS_PORT", str(METRICS_PORT)),
        help="port of /metrics, /livez and /readyz (ASYSI_OPERATOR_METRICS_PORT)",
    )
    parser.add_argument(
        "--audit-seconds",
        type=float,
        default=_variable("AUDIT_SECONDS", "30"),
        help="seconds between audits, which compare the watch cache with a list;"
        " if watches stall, /livez fails after three audits (ASYSI_OPERATOR_AUDIT_SECONDS)",
    )
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=_variable("LOG_LEVEL", "info"),
        help="lowest level logged to standard error (ASYSI_OPERATOR_LOG_LEVEL)",
    )
    chosen = parser.parse_args(arguments)
    if problem := next(_problems(chosen), None):
        parser.error(f"argument {problem}")
    return chosen


def _problems(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield what argparse does not check: ranges, and choices of values that come from variables."""
    for name in chosen.namespace:
        if not _NAMESPACE.fullmatch(name):
            yield f"--namespace: {name!r} is not a namespace's name: small letters, digits and -, at most 63"
    if chosen.image_pull_policy not in PULL_POLICIES:
        yield f"--image-pull-policy: {chosen.image_pull_policy!r} is none of {', '.join(PULL_POLICIES)}"
    if chosen.log_level not in LOG_LEVELS:
        yield f"--log-level: {chosen.log_level!r} is none of {', '.join(LOG_LEVELS)}"
    if not 0 <= chosen.metrics_port <= 65535:
        yield f"--metrics-port: {chosen.metrics_port} is not a port: 1 to 65535, or 0 for any that is free"
    if not 0 < chosen.audit_seconds < math.inf:
        yield f"--audit-seconds: {chosen.audit_seconds:g} is not a number of seconds above 0"


async def operate(chosen: argparse.Namespace) -> None:
    """Run the operator until SIGTERM or SIGINT, handled by kopf; re-raises the error that ended a watch."""
    from asysi_operator.cluster import CHILDREN, PODS, Cluster  # noqa: PLC0415 - not for `--help`
    from asysi_operator.controller import WORKERS, WRITERS, Controller  # noqa: PLC0415
    from asysi_operator.handlers import watch  # noqa: PLC0415
    from asysi_operator.health import serve  # noqa: PLC0415
    from asysi_operator.reconcile import OperatorSettings  # noqa: PLC0415
    from asysi_operator.watching import Watches  # noqa: PLC0415

    log.info("starting version %s with worker image %s", __version__, chosen.image)
    settings = OperatorSettings(
        chosen.image, chosen.image_pull_policy, chosen.allowed, chosen.metrics_readers
    )
    kinds = (*CHILDREN, PODS)
    held = len(kinds) * max(1, len(chosen.namespace))  # connections: each watch holds one
    cluster = Cluster(WORKERS + WRITERS + 2 + held)
    controller = Controller(cluster, settings, chosen.namespace, chosen.audit_seconds)
    watches = Watches(cluster, kinds, chosen.namespace, controller.take, controller.listed)
    ready, watched, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS + 2))
    serve(chosen.metrics_port, lambda: controller.ill, ready.is_set)
    if not await _defined(cluster):
        return
    dead = watches.start()
    dead.add_done_callback(lambda _: stop.set())
    beginning = asyncio.create_task(_begin(watched, watches, controller, ready))
    try:
        await watch(controller, chosen.namespace, watched, stop)  # the process ends with it in any case
    finally:
        beginning.cancel()
        with contextlib.suppress(Exception):
            await controller.stop()
    if dead.done():
        dead.result()


async def _defined(cluster: "Cluster") -> bool:
    """Wait until the API server serves ScanExperiments; False if a signal arrives first.

    A watch on a kind without a CRD would never start, while the other watches would run without it.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    said = False
    while not stop.is_set() and not await asyncio.to_thread(cluster.knows_experiments):
        if not said:
            log.warning("the API server has no ScanExperiment: waiting for its CustomResourceDefinition")
        said = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), DEFINED_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    return not stop.is_set()


async def _begin(
    watched: asyncio.Event, watches: "Watches", controller: "Controller", ready: asyncio.Event
) -> None:
    """Start the controller once all watches run and the cache is filled."""
    await watched.wait()
    await watches.begun()
    await controller.learn()
    gc.freeze()  # keeps the long-lived module objects out of later collections, 0.1 s each
    controller.start()
    ready.set()
    known = sum(controller.cache.phases().values())
    log.info("ready: %d experiments in %s", known, ", ".join(controller.namespaces) or "all namespaces")


def main(arguments: Sequence[str]) -> int:
    """Run the operator; returns the exit code."""
    chosen = options(arguments)
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.basicConfig(
        stream=sys.stderr,
        level=chosen.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    if chosen.log_level == "info":  # kopf logs every event at info
        logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(operate(chosen))
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        return int(Exit.CONFIG)
    return int(Exit.OK)


def _peers(text: str) -> list[dict[str, object]]:
    """Return a list of NetworkPolicy peers; raises ValueError if the text is not one."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("expected a list of objects")
    return found


def _variable(name: str, otherwise: str) -> str:
    return os.environ.get(f"ASYSI_OPERATOR_{name}") or otherwise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
