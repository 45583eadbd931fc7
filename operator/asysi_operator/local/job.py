"""Runs rendered objects on this machine: directories, locks, signals and display around the attempts."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath

import yaml

from asysi.contract import runtime
from asysi.contract.errors import ConfigError
from asysi.contract.quantity import parse_bytes
from asysi.contract.runtime import INPUTS, Env, Exit
from asysi_operator.local.attempts import Attempts, RunOutcome
from asysi_operator.local.cpu_binding import bound
from asysi_operator.local.display import display
from asysi_operator.local.events import Events
from asysi_operator.local.output import OutputFolder
from asysi_operator.local.pipeline_progress import progress
from asysi_operator.local.pod import FaultInjection, Pod
from asysi_operator.local.probing import ProbeClient
from asysi_operator.local.run_directories import SHARED_MEMORY, RunDirectories, refuse_small_memory
from asysi_operator.local.signals import UserSignals
from asysi_operator.local.summary import summary
from asysi_operator.local.watching import StatusMonitor
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.manifests.volumes import RINGS

STRIKE_AT_LATEST = 20.0
"""Seconds after which the fault is injected even if there is no checkpoint yet."""


def run_objects(
    objects: Sequence[Manifest],
    output: Path,
    *,
    first_attempt: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    plain: bool = False,
    kill_once: str | None = None,
    when_full: str = "stop",
    queues: bool = False,
    binding: Mapping[str, str] | None = None,
    shared: Path = SHARED_MEMORY,
    scratch: Path | None = None,
) -> int:
    """Run the Jobs among `objects` sequentially; must be called on the main thread.

    The last Job is the experiment's own; the one before it, if any, is the pipeline's.

    Args:
        objects: objects rendered by `manifests.build`.
        output: absolute path of the output directory.
        first_attempt: number of the first attempt.
        overwrite: whether a run in it may be replaced.
        resume: whether to continue a run in it.
        plain: print lines instead of a live display.
        kill_once: container to kill once, to show that it recovers.
        when_full: whether the model run stops or continues when the disk is full: `stop` or `continue`.
        queues: whether the containers of the last Job need a queue server.
        binding: CPUs of each container, as in `taskset -c`.
        shared: shared-memory directory for the rings.
        scratch: directory for other temporary files; None uses the system's.

    Returns:
        0 done, 1 failed, 2 refused, 130 interrupted, 143 terminated.

    Raises:
        ConfigError: rejected before anything was started; nothing is left behind.
    """
    jobs = [item for item in objects if item["kind"] == "Job"]
    job = jobs[-1]
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    _refuse(job, kill_once)
    cpus = bound(binding or {})
    refuse_small_memory(shared, _rings(pod))
    with (
        UserSignals() as signals,
        RunDirectories(name, shared=shared, scratch=scratch) as directories,
        closing(ProbeClient()) as asker,
    ):
        config = _one(objects, "ConfigMap")["data"]
        directories.write_config(config)
        results = OutputFolder(output)
        results.open(overwrite=overwrite, resume=resume)
        shown = display(plain=plain)
        watching = StatusMonitor(name, shown, asker, signals, kill_once, rows=lambda: progress(output))

        def on_tick(attempt: int, pod: Pod) -> None:
            watching.on_tick(attempt, pod)
            if results.replaces and results.worth_keeping:
                results.keep()

        outcome = None
        try:
            results.write(runtime.EXPERIMENT_FILE, _as_yaml(config[runtime.MOUNTS[Env.CONFIG].name]))
            with Events(output / runtime.EVENTS_FILE) as events, shown:
                for one in jobs:
                    outcome = Attempts(
                        one,
                        directories=directories,
                        output=output,
                        events=events,
                        signals=signals,
                        on_tick=on_tick,
                        asker=asker,
                        cpus=cpus,
                        fault=_fault(kill_once, output) if one is job else None,
                        first=first_attempt,
                        when_full=when_full,
                        queues=queues and one is job,
                    ).run()
                    if one is not job:
                        outcome = _before(outcome, signals)
                        directories.fresh()
                    if outcome.code != Exit.OK:
                        break
        finally:
            _settle(results, outcome)
    assert outcome is not None
    text = summary(name, outcome, watching.status, output)
    print(text, file=sys.stdout if outcome.code == Exit.OK else sys.stderr)
    return int(outcome.code)


def _before(outcome: RunOutcome, signals: UserSignals) -> RunOutcome:
    """Return the pipeline's outcome; if the user stopped it early, the model does not run."""
    if not signals.clean_end or outcome.code not in {Exit.OK, Exit.FAILED}:
        return outcome
    return replace(outcome, code=Exit.INTERRUPTED, reason="stopped by the user: run it again to continue")


def _one(objects: Sequence[Manifest], kind: str) -> Manifest:
    return next(item for item in objects if item["kind"] == kind)


def _as_yaml(document: str) -> str:
    return yaml.safe_dump(json.loads(document), sort_keys=False, allow_unicode=True)


def _rings(pod: Manifest) -> int:
    volume = next(item for item in pod["volumes"] if item["name"] == RINGS)
    return parse_bytes(volume["emptyDir"]["sizeLimit"])


def _refuse(job: Manifest, kill_once: str | None) -> None:
    spec = job["spec"]
    if spec.get("suspend"):
        raise ConfigError(
            "spec.lifecycle.suspend is true, so the experiment is suspended: set it to false to run it here"
        )
    pod = spec["template"]["spec"]
    _refuse_missing_inputs(pod)
    names = [item["name"] for item in [*pod["initContainers"], *pod["containers"]]]
    if kill_once is not None and kill_once not in names:
        raise ConfigError(
            f"there is no container {kill_once} to kill in this experiment: choose {', '.join(names)}"
        )


def _refuse_missing_inputs(pod: Manifest) -> None:
    """Reject missing inputs: a claim is a directory below /inputs in the pod, so it must be one here too."""
    mounts = {mount["mountPath"] for item in pod["containers"] for mount in item["volumeMounts"]}
    missing = sorted(
        path for path in mounts if PurePosixPath(path).is_relative_to(INPUTS) and not Path(path).is_dir()
    )
    if missing:
        raise ConfigError(
            f"spec.inputs names volumes of a cluster, and {', '.join(missing)} is not a folder here: "
            "remove the inputs and use local files, or create the folder"
        )


def _fault(name: str | None, output: Path) -> FaultInjection | None:
    """Inject the fault once the first checkpoint exists, so that there is something to resume from."""
    folder = output / runtime.CHECKPOINT_FOLDER
    if name is None:
        return None
    return FaultInjection(name, lambda lived: lived > STRIKE_AT_LATEST or any(folder.glob("*.ckpt")))


def _settle(results: OutputFolder, outcome: RunOutcome | None) -> None:
    """Keep the results of a run; of a run without results, keep at most the logs of its failure."""
    failed = outcome is None or outcome.code == Exit.FAILED
    if results.worth_keeping or (failed and not results.replaces) or (outcome and outcome.code == Exit.OK):
        results.keep()
    else:
        results.discard()
