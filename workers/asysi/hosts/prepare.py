"""Prepare: checks the experiment, resolves the model, creates the rings. Idempotent."""

import json
import logging
import os
import resource

from asysi.bus.factory import create_data_bus
from asysi.bus.stream import StreamError
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MODEL_FILE, POINTS_FILE, Container, Env, Exit
from asysi.files import write_atomic
from asysi.hosts.attempt import take_attempt
from asysi.hosts.check import CheckReport, check, missing_bytes
from asysi.model.points import points_to_json
from asysi.monitor.folder import own_identity
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker

log = logging.getLogger("asysi")


def main(worker: Worker) -> int:
    """Prepare the experiment; returns the exit code.

    Raises:
        ConfigError: the experiment cannot run.
    """
    if worker.experiment.spec.data is not None and worker.experiment.spec.data.pipeline is not None:
        from asysi.pipeline.job import settle  # noqa: PLC0415 - few experiments have a pipeline

        log.info("the pipeline produced %d rows", settle(worker.experiment, worker.output).rows)
    report = check(worker.experiment, shm=worker.shm, output=worker.output, workspace=worker.workspace)
    for warning in report.warnings:
        log.warning("%s", warning)
    if report.problems or report.model is None:
        raise ConfigError(*report.problems)
    worker.health.beat()
    _claim_address(worker)
    write_atomic(worker.workspace / MODEL_FILE, report.model.to_json())
    write_atomic(worker.workspace / POINTS_FILE, points_to_json(report.points))
    create_rings(worker, report)
    attempt = take_attempt(worker)
    log.info(
        "attempt %d: %d hook points, %d documents, %d held out",
        attempt, len(report.points), report.documents, report.held_out,
    )  # fmt: skip
    worker.last_words(json.dumps({"attempt": attempt}))
    return Exit.OK


def _claim_address(worker: Worker) -> None:
    output = worker.experiment.spec.output
    if output.store is not None:
        from asysi.store.claim import claim_address  # noqa: PLC0415 - few experiments have a store

        claim_address(own_identity(worker), worker.output, output.store, resume=output.resume)


def create_rings(worker: Worker, report: CheckReport) -> None:
    """Create missing streams, after checking them against the container's memory limit.

    Raises:
        ConfigError: the limit or the file system is too small, or a ring of another size already exists.
    """
    spec = worker.experiment.spec
    needed = missing_bytes(spec, report.rings, worker.shm)
    heap = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = int(os.environ.get(Env.MEMORY) or 0)
    if limit and needed + heap > limit:
        raise ConfigError(
            f"spec.resources.prepare.memory: {limit / 2**20:.0f}Mi cannot hold the rings,"
            f" {needed / 2**20:.0f}Mi, and prepare itself, {heap / 2**20:.0f}Mi: the kernel would kill it."
            f" Raise it to {(needed + heap) / 2**20 + 64:.0f}Mi, or lower capture.size or bus.size"
        )
    for ring in report.rings:
        try:
            create_data_bus(spec, worker.shm, ring.folder).create(ring)
        except StreamError as error:
            raise ConfigError(f"the stream {worker.shm / ring.folder} cannot be created: {error}") from error


if __name__ == "__main__":
    run_worker(Container.PREPARE, main)
