"""The runtime contract of the pod: containers, mounts, environment, ports, exit codes and output folders.

The manifests render it, the local runner emulates it, and the workers rely on it.
"""

from enum import IntEnum, StrEnum
from pathlib import PurePosixPath


class Container(StrEnum):
    """Containers of an experiment in order of start; the pipeline runs in its own pod."""

    PIPELINE = "pipeline"
    PREPARE = "prepare"
    ARCHIVER = "archiver"
    SAE = "sae"
    HOOK = "hook"
    HOST = "host"
    FINISH = "finish"


MODULES = {
    Container.PIPELINE: "asysi.pipeline.job",
    Container.PREPARE: "asysi.hosts.prepare",
    Container.ARCHIVER: "asysi.archive",
    Container.SAE: "asysi.sae",
    Container.HOOK: "asysi.hook",
    Container.FINISH: "asysi.finish",
}
"""`python -m` module of each container except the host, which is defined in `contract/workloads.py`."""

PORTS = {
    Container.HOST: 9101,
    Container.HOOK: 9102,
    Container.SAE: 9103,
    Container.ARCHIVER: 9104,
    Container.FINISH: 9105,
}
"""Ports of `/metrics /livez /readyz /status`: distinct, because a pod's containers share its network."""


class Env(StrEnum):
    """Environment variables of every container."""

    CONFIG = "ASYSI_CONFIG"
    """File with the whole experiment as JSON."""
    SHM = "ASYSI_SHM"
    """Folder of the rings `capture/rank-0` and `bus`."""
    OUTPUT = "ASYSI_OUTPUT"
    """Folder of the results."""
    WORKSPACE = "ASYSI_WORKSPACE"
    """Folder shared by prepare, host and finish, with the model and the resolved hook points."""
    ATTEMPT = "ASYSI_ATTEMPT"
    """Number of the attempt, from 0. If unset, prepare allocates the next one of the output."""
    JOB = "ASYSI_JOB"
    """UID of the Job assigned by the API server, if any."""
    PORT = "ASYSI_PORT"
    """Port of the worker's HTTP endpoints; 0 disables them."""
    TERMINATION = "ASYSI_TERMINATION"
    """File for the container's termination message (at most 4 KiB), as in Kubernetes."""
    MEMORY = "ASYSI_MEMORY"
    """Memory limit of the container in bytes."""
    MODULES = "ASYSI_MODULES"
    """Colon-separated folders in which python:// finds modules that are not installed."""


MOUNTS = {
    Env.SHM: PurePosixPath("/dev/shm/asysi"),  # noqa: S108 - the pod's own emptyDir
    Env.OUTPUT: PurePosixPath("/output"),
    Env.WORKSPACE: PurePosixPath("/workspace"),
    Env.CONFIG: PurePosixPath("/etc/asysi/experiment.json"),
}
"""Mount paths in the pod; a local run uses its own folders instead."""


INPUTS = PurePosixPath("/inputs")
"""Folder in which the claims of `spec.inputs` are mounted."""


class Exit(IntEnum):
    """Exit codes of workers and of the command line."""

    OK = 0
    FAILED = 1
    CONFIG = 2
    """Invalid configuration: not retriable."""
    INTERRUPTED = 130
    """Stopped early and cleanly at the user's request."""
    KILLED = 137
    TERMINATED = 143
    """SIGTERM: progress is checkpointed."""


CAPTURE_RING = PurePosixPath("capture/rank-0")
BUS_RING = PurePosixPath("bus")

QUEUE_SERVER = "asysi.bus.serve_queues"
"""`python -m` module of the queue server that the local runner starts in CONSUMER mode, with its folder. By
name: the runner imports nothing of the workers."""
QUEUE_KEY = "queue.key"
"""File in that folder, which exists once the server listens."""
HOOK_THREAD = "asysi.hook.beside:HookThread"
"""`module:class` of the hook's work in CONSUMER mode, beside the model; hosts import nothing of it."""

# Folders and files in the output.
IDENTITY_FILE = PurePosixPath("identity.json")
"""Owner of the folder: namespace, name, digest of the fields that determine the content, uid."""
EXPERIMENT_FILE = PurePosixPath("experiment.yaml")
LEDGER_FILE = PurePosixPath("ledger.json")
VERDICT_FILE = PurePosixPath("verdict.json")
"""The verdict on the ledger and the data: level, both conditions, findings and measurements."""
REPORT_FILE = PurePosixPath("report.html")
MEANS_FILE = PurePosixPath("means.safetensors")
"""Mean activation of each channel, by hook point and call; written where gradients are captured."""
RANGES_FILE = PurePosixPath("quantization.safetensors")
"""Under `capture.quantization: int8`, frozen mean and scale of each channel: [2, width] by hook point."""
STATISTICS_FILE = PurePosixPath("statistics.json")
"""Mean, standard deviation and range of captured values, by hook point."""
TIMELINE_FILE = PurePosixPath("timeline.jsonl")
"""One line per second: time, rate, offered and consumed rows per second, drops, lag and restarts."""
EVENTS_FILE = PurePosixPath("events.jsonl")
"""One line per start, exit, kill and restart of a container: {time (Unix, s), container, event, attempt,
code, reason}. Written by the local runner."""
SAE_FOLDER = PurePosixPath("sae")
"""`sae/<trainer>/<hook point>/`: SAELens' layout."""
TRAINING_FILE = PurePosixPath("training.json")
"""`sae/<trainer>/training.json`: metrics and training curve per hook point, or why there is no SAE."""
CHECKPOINT_FOLDER = PurePosixPath("checkpoints")
"""`checkpoints/<trainer>.ckpt`: atomic, one per trainer."""
ARCHIVE_FOLDER = PurePosixPath("archive")
"""`archive/attempt-0000-segment-0000.mscan`, …"""
HOST_FOLDER = PurePosixPath("host")
"""`host/progress.json` and `host/seen.json` (counts of the tokens read, by length and position)."""
MODEL_FOLDER = PurePosixPath("model")
"""The model after the run as a Hugging Face folder, if the workload trains it."""
TRAIN_FOLDER = PurePosixPath("train")
"""The run of a training project: checkpoint, weights, `report.json` and `report.html`."""
WEIGHTS_FOLDER = PurePosixPath("weights")
"""Parameter analysis: `before.csv`, `after.csv`, `difference.csv`, `report.html`, `run_meta.json`."""
PIPELINE_FOLDER = PurePosixPath("pipeline")
"""`pipeline/<digest>/rows.jsonl`, sealed, with the ledgers of its shards and the rows between operators."""
UPLOADED_FILE = PurePosixPath("uploaded.json")
"""The address in the store of `output.uri`, and the segments that it holds."""
UPLOADING_LOCK = PurePosixPath(".uploading.lock")
"""Held while results are uploaded."""
LOG_FOLDER = PurePosixPath("logs")
ATTEMPTS_FOLDER = PurePosixPath("attempts")
"""`attempts/<number>/`: created by prepare, once per number; finish writes the attempt's ledger to it."""
OUTPUTS = (
    *(EVENTS_FILE, EXPERIMENT_FILE, LEDGER_FILE, REPORT_FILE, VERDICT_FILE, TIMELINE_FILE, IDENTITY_FILE),
    *(
        SAE_FOLDER,
        CHECKPOINT_FOLDER,
        ARCHIVE_FOLDER,
        HOST_FOLDER,
        MODEL_FOLDER,
        TRAIN_FOLDER,
        WEIGHTS_FOLDER,
        LOG_FOLDER,
    ),
    *(
        ATTEMPTS_FOLDER,
        PIPELINE_FOLDER,
        RANGES_FILE,
        MEANS_FILE,
        UPLOADED_FILE,
        UPLOADING_LOCK,
        PurePosixPath(".identity.lock"),
        STATISTICS_FILE,
    ),
)
"""All top-level files and folders that a run creates in its output folder."""

# Files in the workspace.
ATTEMPT_FILE = PurePosixPath("attempt")
"""Number of the attempt allocated by prepare."""
POINTS_FILE = PurePosixPath("points.json")
"""The resolved hook points: a list of {path, alias, shape, dtype}."""
MODEL_FILE = PurePosixPath("model.json")
"""The model resolved by prepare: {uri, path, sha256, revision, class_name, tokenizer}."""
REREAD_FILE = PurePosixPath("reread.safetensors")
"""Rows and tokens of the report's documents, left by a host with a GPU."""
REREAD_LOCK = PurePosixPath("reread.lock")
"""Held by a host from before its ring is closed until it has left them."""
REREADER = "asysi.finish.host_rows:leave"
"""`module:function` that leaves them. By name: finish stands above the hosts, which import nothing of it."""
