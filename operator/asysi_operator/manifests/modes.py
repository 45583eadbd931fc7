"""Which modes a cluster can run. Pure."""

from asysi.contract.spec import Spec


def refuse_mode(spec: Spec) -> str | None:
    """Return why a cluster cannot run an experiment's mode, or None if it can."""
    if spec.mode == "HPC":
        return None
    return (
        f"spec.mode is {spec.mode}, which runs on one machine only: start it with `asysi run`, or use "
        "`mode: HPC` on a cluster"
    )
