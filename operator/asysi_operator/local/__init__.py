"""An experiment on one machine: the pod that the operator would create, each container a process."""

from pathlib import Path

from asysi.contract.spec import ScanExperiment


def run(
    experiment: ScanExperiment,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    plain: bool = False,
    kill_once: str | None = None,
) -> int:
    """Run an experiment to its end and return the exit code; must be called on the main thread.

    Args:
        experiment: the resolved experiment.
        output: folder of the results; None takes the spec's, or `runs/<name>`.
        overwrite: whether a run in that folder may be replaced.
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
    from asysi_operator.manifests import build  # noqa: PLC0415

    return run_objects(
        build(experiment),
        output_folder(experiment.metadata.name, output, experiment.spec.output.uri),
        overwrite=overwrite,
        plain=plain,
        kill_once=kill_once,
        binding={str(name): cpus for name, cpus in experiment.spec.resources.binding.cpus.items()},
    )
