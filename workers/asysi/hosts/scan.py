"""The scan host: runs the model over the data, with capture; never waits for readers."""

import logging

from asysi.capture.gradients import BackwardPass
from asysi.contract.errors import ConfigError
from asysi.contract.rows import read_rows
from asysi.contract.runtime import Container, Exit
from asysi.contract.spec import Data, Scan
from asysi.hosts.frame import HostPlan, open_host
from asysi.hosts.leaving import announced
from asysi.model.forward import ScanRunner
from asysi.model.loading import LoadedModel
from asysi.model.loss import make_loss
from asysi.monitor.process import run_worker
from asysi.monitor.worker import Worker
from asysi.text.reading import PlannedReading, read_data

log = logging.getLogger("asysi")


def main(worker: Worker) -> int:
    """Run the scan; returns the exit code."""
    spec = worker.experiment.spec
    scan = spec.workload.scan
    if scan is None or spec.data is None:
        raise ConfigError("spec.workload.scan: the scan host needs a scan and data")
    with announced(worker) as rows:
        with open_host(worker) as host:
            loaded = host.load_model()
            loss = make_loss(scan.loss) if set(spec.capture.kinds) != {"activations"} else None
            engine = ScanRunner(loaded, host.points, host.device, loss)
            reading = _read(worker, scan, spec.data, loaded)
            plan = _plan(reading, spec.data.tokens.context_length, scan.seed)
            run = host.watch(engine.module, plan, engine.root)
            if loss is not None:
                run.backward(BackwardPass(reduction=loss.reduction))
            for batch in run.steps(reading.batches.from_step(run.first)):
                engine.run(batch)
        rows.leave(loaded, host)
    return Exit.OK


def _read(worker: Worker, scan: Scan, data: Data, loaded: LoadedModel) -> PlannedReading:
    """Read the documents, and warn of text that spells special tokens."""
    reading = read_data(read_rows(data, worker.output), scan, loaded.tokenizer)
    if reading.spelled.documents:
        log.warning(
            "%d documents spell special tokens (%s); data.tokens.specialTokensInText reads them as %s",
            reading.spelled.documents, ", ".join(reading.spelled.found), data.tokens.special_tokens_in_text,
        )  # fmt: skip
    return reading


def _plan(reading: PlannedReading, context_length: int, seed: int) -> HostPlan:
    return HostPlan(
        context_length=context_length,
        seed=seed,
        steps=reading.batches.steps,
        tokens=reading.batches.content_tokens_in_all,
        openers=reading.openers,
        corpus={
            "documents": reading.documents,
            "held_out": reading.held_out,
            "duplicates": reading.duplicates,
            "renumbered": reading.renumbered,
            "truncated": reading.truncated,
            "special_tokens_in_text": reading.spelled.to_dict(),
            "unique_tokens": reading.batches.content_tokens,
        },
    )


if __name__ == "__main__":
    run_worker(Container.HOST, main)
