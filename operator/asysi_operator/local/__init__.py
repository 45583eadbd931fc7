"""An experiment on one machine: the pod that the operator would create, each container a process."""

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
        output: folder of the results; None takes the spec's, or `runs/<name>`.
        overwrite: whether a run in that folder may be replaced.
        resume: whether an unfinished run in that folder is continued; where there is none, one begins.
        plain: lines instead of a live display.
        kill_once: container that is killed (SIGKILL) once on purpose, after its first checkpoint.

    Returns:
        0 done, 1 failed, 2 refused by a container, 130 interrupted, 143 terminated.

    Raises:
        ConfigError: refused before anything was started; nothing is left behind.
    """
    # Imported here: whoever only asks for help need not wait for it.
    from asysi_operator.local.job import run_objects  # noqa: PLC0415
    from asysi_operator.local.output import output_folder  # noqa: PLC0415
    from asysi_operator.local.resuming import continued  # noqa: PLC0415
    from asysi_operator.manifests import build  # noqa: PLC0415

    # A uid is a promise of an API server: here nobody has made it.
    metadata = experiment.metadata.model_copy(update={"uid": None})
    experiment = experiment.model_copy(update={"metadata": metadata})
    folder = output_folder(experiment.metadata.name, output, experiment.spec.output)
    first = continued(folder, experiment) if resume else 0
    return run_objects(
        build(experiment, output="."),
        folder,
        first_attempt=first,
        overwrite=overwrite,
        resume=resume,
        plain=plain,
        kill_once=kill_once,
        when_full=experiment.spec.output.when_full,
        binding={str(name): cpus for name, cpus in experiment.spec.resources.binding.cpus.items()},
    )
