"""Runs an experiment on one machine: the pod that the operator would create, with containers as processes."""

from pathlib import Path

from asysi.contract.spec import ScanExperiment


def run(
    experiment: ScanExperiment,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    plain: bool = False,
    kill_once: str | None = None,
) -> int:
    """Run an experiment to its end and return the exit code; must be called on the main thread.

    Args:
        experiment: the resolved experiment.
        output: results directory; None uses the spec's, or `runs/<name>`.
        overwrite: whether a run in that directory may be replaced.
        resume: whether to continue an unfinished run in that directory; if there is none, a new run starts.
        plain: print lines instead of a live display.
        kill_once: container to kill (SIGKILL) once as a fault injection, after the first checkpoint.

    Returns:
        0 done, 1 failed, 2 refused by a container, 130 interrupted, 143 terminated.

    Raises:
        ConfigError: rejected before anything was started; nothing is left behind.
    """
    # Imported here to keep `--help` fast.
    from asysi_operator.local.job import run_objects  # noqa: PLC0415
    from asysi_operator.local.output import output_folder  # noqa: PLC0415
    from asysi_operator.local.resuming import continued  # noqa: PLC0415
    from asysi_operator.manifests import build  # noqa: PLC0415

    # A uid is assigned by an API server; a local run has none.
    metadata = experiment.metadata.model_copy(update={"uid": None})
    experiment = experiment.model_copy(update={"metadata": metadata})
    folder = output_folder(experiment.metadata.name, output, experiment.spec.output)
    first = continued(folder, experiment) if resume else 0
    return run_objects(
        build(experiment, output=".", local=True),
        folder,
        first_attempt=first,
        overwrite=overwrite,
        resume=resume,
        plain=plain,
        kill_once=kill_once,
        when_full=experiment.spec.output.when_full,
        queues=experiment.spec.mode == "CONSUMER" and experiment.spec.bus.redis is None,
        binding={str(name): cpus for name, cpus in experiment.spec.resources.binding.cpus.items()},
    )
