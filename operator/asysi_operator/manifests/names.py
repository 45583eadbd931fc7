"""Names of an experiment's objects; the limit of 52 characters leaves room for every suffix."""

from asysi.contract.spec import ScanExperiment

OUTPUT = "-output"
"""Suffix of an experiment's own claim."""
ROWS = "-rows"
"""Suffix of the pipeline's objects; leaves room for a pod's index."""


def job_name(experiment: ScanExperiment) -> str:
    """Return the name of the Job."""
    return experiment.metadata.name


def config_name(experiment: ScanExperiment) -> str:
    """Return the name of the ConfigMap that holds the experiment."""
    return config_name_of(experiment.metadata.name)


def config_name_of(name: str) -> str:
    """Return the name of the ConfigMap, given the experiment's name."""
    return f"{name}-config"


def claim_name(experiment: ScanExperiment) -> str:
    """Return the name of the claim for the results: the user's, or the experiment's own."""
    return experiment.spec.output.claim or f"{experiment.metadata.name}{OUTPUT}"


def rows_name(experiment: ScanExperiment) -> str:
    """Return the name of the pipeline's Job and NetworkPolicy."""
    return f"{experiment.metadata.name}{ROWS}"


def policy_name(experiment: ScanExperiment) -> str:
    """Return the name of the NetworkPolicy."""
    return experiment.metadata.name
