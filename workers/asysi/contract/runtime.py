"""The pod's agreement: containers, mounts, environment, ports, exit codes and the folders of the output.

The manifests render it, the local runner imitates it, the workers live by it.
"""

from enum import IntEnum, StrEnum
from pathlib import PurePosixPath


class Container(StrEnum):
    """Containers of an experiment in the order in which they start: pipeline in a pod of its own."""

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
"""`python -m` of each container but the host, which `contract/workloads.py` knows."""

PORTS = {
    Container.HOST: 9101,
    Container.HOOK: 9102,
    Container.SAE: 9103,
    Container.ARCHIVER: 9104,
    Container.FINISH: 9105,
}
"""Ports of `/metrics /livez /readyz /status`: distinct, because a pod's containers share its network."""


class Env(StrEnum):
    """Environment of every container."""

    CONFIG = "ASYSI_CONFIG"
    """File with the whole experiment as JSON."""
    SHM = "ASYSI_SHM"
    """Folder of the rings: `capture/rank-0` and `bus` in it."""
    OUTPUT = "ASYSI_OUTPUT"
    """Folder of the results."""
    WORKSPACE = "ASYSI_WORKSPACE"
    """Folder that prepare, host and finish share: the model, the matched hook points."""
    ATTEMPT = "ASYSI_ATTEMPT"
    """Number of the attempt, from 0. Where it is not set, prepare takes the next one of the output."""
    JOB = "ASYSI_JOB"
    """Identity that the API server has given the Job, where one has."""
    PORT = "ASYSI_PORT"
    """Port of the worker's HTTP endpoints; 0 serves none."""
    TERMINATION = "ASYSI_TERMINATION"
    """File for the last words of a container (at most 4 KiB), as Kubernetes' termination message."""
    MEMORY = "ASYSI_MEMORY"
    """Memory limit of the container in bytes."""
    MODULES = "ASYSI_MODULES"
    """Folders, separated by colons, in which python:// finds modules that are not installed."""


MOUNTS = {
    Env.SHM: PurePosixPath("/dev/shm/asysi"),  # noqa: S108 - the pod's own emptyDir
    Env.OUTPUT: PurePosixPath("/output"),
    Env.WORKSPACE: PurePosixPath("/workspace"),
    Env.CONFIG: PurePosixPath("/etc/asysi/experiment.json"),
}
"""Where the pod mounts them; a local run puts its own folders in their place."""


INPUTS = PurePosixPath("/inputs")
"""Folder below which the claims of `spec.inputs` are mounted."""


class Exit(IntEnum):
    """Exit codes of workers and of the command line."""

    OK = 0
    FAILED = 1
    CONFIG = 2
    """Bad configuration: trying again cannot help."""
    INTERRUPTED = 130
    """Ended early and cleanly at the user's wish."""
    KILLED = 137
    TERMINATED = 143
    """SIGTERM: what was seen is checkpointed."""


CAPTURE_RING = PurePosixPath("capture/rank-0")
BUS_RING = PurePosixPath("bus")

# Folders and files below the output.
IDENTITY_FILE = PurePosixPath("identity.json")
"""Whose the folder is: namespace, name, digest of what decides the content, uid."""
EXPERIMENT_FILE = PurePosixPath("experiment.yaml")
LEDGER_FILE = PurePosixPath("ledger.json")
VERDICT_FILE = PurePosixPath("verdict.json")
"""The verdict on the books and on the data: level, both conditions, findings, and what was measured."""
REPORT_FILE = PurePosixPath("report.html")
TIMELINE_FILE = PurePosixPath("timeline.jsonl")
"""A line a second: time, rate, offered and consumed rows a second, drops, lag and restarts."""
EVENTS_FILE = PurePosixPath("events.jsonl")
"""A line for each start, exit, kill and restart of a container: {time (Unix, s), container, event, attempt,
code, reason}. Written by the local runner."""
SAE_FOLDER = PurePosixPath("sae")
"""`sae/<trainer>/<hook point>/`: SAELens' layout."""
TRAINING_FILE = PurePosixPath("training.json")
"""`sae/<trainer>/training.json`: for each hook point its figures, training curve, and why there is no SAE."""
CHECKPOINT_FOLDER = PurePosixPath("checkpoints")
"""`checkpoints/<trainer>.ckpt`: atomic, one per trainer."""
ARCHIVE_FOLDER = PurePosixPath("archive")
"""`archive/attempt-0000-segment-0000.mscan`, …"""
HOST_FOLDER = PurePosixPath("host")
"""`host/progress.json` and `host/seen.json` (what the host saw, by length and position)."""
MODEL_FOLDER = PurePosixPath("model")
"""The model as the run left it, a Hugging Face folder, where the workload trains it."""
TRAIN_FOLDER = PurePosixPath("train")
"""The run of a training project: checkpoint, weights, `report.json` and `report.html`."""
WEIGHTS_FOLDER = PurePosixPath("weights")
"""What the parameters say: `before.csv`, `after.csv`, `difference.csv`, `report.html`, `run_meta.json`."""
PIPELINE_FOLDER = PurePosixPath("pipeline")
"""`pipeline/<digest>/rows.jsonl`, sealed, with the ledgers of its shards and the rows between operators."""
LOG_FOLDER = PurePosixPath("logs")
ATTEMPTS_FOLDER = PurePosixPath("attempts")
"""`attempts/<number>/`: made by prepare, once a number; finish leaves the attempt's ledger in it."""
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
    *(ATTEMPTS_FOLDER, PIPELINE_FOLDER, PurePosixPath(".identity.lock"), PurePosixPath("statistics.json")),
)
"""Everything that a run makes at the top of its output folder."""

# Files below the workspace.
ATTEMPT_FILE = PurePosixPath("attempt")
"""Number of the attempt, as prepare took it."""
POINTS_FILE = PurePosixPath("points.json")
"""The matched hook points: a list of {path, alias, shape, dtype}."""
MODEL_FILE = PurePosixPath("model.json")
"""What prepare resolved: {uri, path, sha256, revision, class_name, tokenizer}."""
REREAD_FILE = PurePosixPath("reread.safetensors")
"""Rows and tokens of the report's documents, left by a host with a GPU."""
REREAD_LOCK = PurePosixPath("reread.lock")
"""Held by a host from before its ring is closed until it has left them."""
REREADER = "asysi.finish.host_rows:leave"
"""`module:function` that leaves them. By name: finish stands above the hosts, which import nothing of it."""
