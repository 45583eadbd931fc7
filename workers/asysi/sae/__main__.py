"""`python -m asysi.sae`: the SAE worker's process."""

from asysi.contract.runtime import Container
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker


def main(worker: Worker) -> int:
    """Run the SAE worker; returns the exit code."""
    from asysi.sae import worker as sae  # noqa: PLC0415 - torch is slow to import; SIGTERM is handled before

    return sae.main(worker)


if __name__ == "__main__":
    run_worker(Container.SAE, main)
