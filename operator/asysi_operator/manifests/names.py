"""Names of an experiment's objects; a name of 52 characters leaves room for every suffix."""

from asysi.contract.spec import ScanExperiment


def job_name(experiment: ScanExperiment) -> str:
    """Return the name of the Job."""
    return experiment.metadata.name


def config_name(experiment: ScanExperiment) -> str:
    """Return the name of the ConfigMap that holds the experiment."""
    return f"{experiment.metadata.name}-config"


def claim_name(experiment: ScanExperiment) -> str:
    """Return the name of the claim that results go to: the user's, or the experiment's own."""
    return experiment.spec.output.claim or f"{experiment.metadata.name}-output"


def policy_name(experiment: ScanExperiment) -> str:
    """Return the name of the NetworkPolicy."""
    return experiment.metadata.name
