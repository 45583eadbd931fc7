"""`python -m asysi.sae`: the SAE worker's process."""

from asysi.contract.runtime import Container
from asysi.monitor.worker import run_worker
from asysi.sae.worker import main

if __name__ == "__main__":
    run_worker(Container.SAE, main)
