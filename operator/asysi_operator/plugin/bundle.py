"""Collects the data for a bug report in one archive. Secrets are never read."""

import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from asysi import __version__
from asysi_operator.manifests.kinds import Manifest
from asysi_operator.observation import containers
from asysi_operator.plugin.access import ClusterError
from asysi_operator.plugin.diagnosis import explain
from asysi_operator.plugin.experiment_view import ExperimentView
from asysi_operator.plugin.kubectl import Kubectl
from asysi_operator.plugin.observe import OPERATOR

LINES = 20_000
"""Maximum number of lines per log, counted from the end."""
FILE_LIMIT = 8 * 2**20
"""Maximum bytes per file in the bundle."""
HIDDEN = "[removed]"
_PASSWORD = re.compile(r"(?<=://)[^/\s\"'@]+(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_NAMES = r"(?:pass(?:word|wd)?|secret|token|credential|(?:api|private|access)[-_.]?key|authorization)"
_TELLING = re.compile(_NAMES, re.IGNORECASE)
"""Names of variables whose values are confidential."""
_ASSIGNED = re.compile(rf"([\w.-]*{_NAMES}[\"']?[ \t]*[=:][ \t]*[\"']?)[^\s\"',}}\[\]]{{6,}}", re.IGNORECASE)
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
Part = tuple[str, Callable[[], str]]


def write_bundle(kubectl: Kubectl, seen: ExperimentView, target: Path) -> list[str]:
    """Write the archive atomically; return a sentence for each part that could not be collected.

    Raises:
        OSError: the file cannot be written.
    """
    root = f"asysi-{seen.namespace}-{seen.name}"
    parts = list(_parts(kubectl, seen))
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda part: _collect(part[1]), parts))
    missing = [f"{kind}: {why}" for kind, why in sorted(seen.hidden.items())]
    missing += [f"{name}: {error}" for (name, _), (_, error) in zip(parts, texts, strict=True) if error]
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with tarfile.open(temporary, "w:gz") as tar:
            for (name, _), (text, _) in zip(parts, texts, strict=True):
                if text is not None:
                    _add(tar, f"{root}/{name}", text)
            _add(tar, f"{root}/missing.txt", "".join(f"{line}\n" for line in missing))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return missing


def _parts(kubectl: Kubectl, seen: ExperimentView) -> Iterator[Part]:
    """Yield the name of each file and a function that returns its text."""
    yield "why.txt", lambda: "".join(f"{line}\n" for line in explain(seen))
    yield "versions.txt", lambda: f"asysi {__version__}\n{kubectl.run('version')}"
    yield "experiment.yaml", lambda: _yaml([seen.experiment])
    yield "events.yaml", lambda: _yaml(seen.events)
    for kind, items in (
        ("jobs", seen.jobs),
        ("pods", seen.pods),
        ("claims", seen.named_claims),
        ("workloads", seen.workloads),
        ("operators", seen.operators),
    ):
        yield f"objects/{kind}.yaml", lambda items=items: _yaml(items)  # type: ignore[misc]
    mine = f"--selector=asysi.dev/experiment={seen.name}"
    for kind in ("configmaps", "networkpolicies", "resourcequotas", "limitranges"):
        chosen = [mine] if kind in {"configmaps", "networkpolicies"} else []
        yield f"objects/{kind}.yaml", lambda kind=kind, chosen=chosen: _yaml(kubectl.items(kind, *chosen))  # type: ignore[misc]
    yield "objects/nodes.txt", lambda: kubectl.run("describe", "nodes")
    yield "objects/crd.yaml", lambda: _yaml([_crd(kubectl)])
    yield "describe/experiment.txt", lambda: kubectl.run("describe", "scanexperiments.asysi.dev", seen.name)
    for pod in seen.pods:
        name = pod["metadata"]["name"]
        yield f"describe/{name}.txt", lambda name=name: kubectl.run("describe", "pod", name)  # type: ignore[misc]
        yield from _logs(kubectl, pod, f"logs/{name}")
    for deployment in seen.operators:
        yield from _of_operator(kubectl, deployment)


def _of_operator(kubectl: Kubectl, deployment: Manifest) -> Iterator[Part]:
    namespace = deployment["metadata"]["namespace"]
    there = Kubectl(kubectl.context, namespace, kubectl.kubeconfig, kubectl.program)
    yield (
        f"operator/{namespace}.txt",
        lambda: there.run("describe", "pods", f"--selector={OPERATOR}"),
    )
    yield (
        f"operator/{namespace}.log",
        lambda: there.run(
            "logs",
            f"--selector={OPERATOR}",
            "--all-containers",
            "--prefix",
            f"--tail={LINES}",
            "--timestamps",
        ),
    )


def _logs(kubectl: Kubectl, pod: Manifest, folder: str) -> Iterator[Part]:
    for container, status in containers(pod).items():
        state = status.get("state") or {}
        call = (
            "logs",
            pod["metadata"]["name"],
            f"--container={container}",
            f"--tail={LINES}",
            "--timestamps",
        )
        if "running" in state or "terminated" in state:
            yield f"{folder}/{container}.log", lambda call=call: kubectl.run(*call)  # type: ignore[misc]
        if status.get("restartCount"):
            yield f"{folder}/{container}.previous.log", lambda call=call: kubectl.run(*call, "--previous")  # type: ignore[misc]


def _crd(kubectl: Kubectl) -> Manifest:
    """Return the CRD without its schema, which is that of the release."""
    found = kubectl.get("customresourcedefinition", "scanexperiments.asysi.dev")
    versions = [
        {key: one.get(key) for key in ("name", "served", "storage")} for one in found["spec"]["versions"]
    ]
    return {"metadata": found["metadata"], "versions": versions, "status": found.get("status")}


def _collect(read: Callable[[], str]) -> tuple[str | None, str | None]:
    try:
        return read(), None
    except ClusterError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a bundle without a part tells more than none
        return None, f"{type(error).__name__}: {error}"


def _yaml(objects: Any) -> str:
    return yaml.safe_dump_all([clean(one) for one in objects], sort_keys=False, width=110)


def clean(item: Any) -> Any:
    """Return an object without Secrets, confidential values, and embedded copies of itself. Pure."""
    if isinstance(item, list):
        return [clean(one) for one in item]
    if not isinstance(item, dict):
        return item
    if item.get("kind") == "Secret":
        return {"kind": "Secret", "metadata": {"name": (item.get("metadata") or {}).get("name")}}
    if "value" in item and _TELLING.search(str(item.get("name", ""))):
        return {**item, "value": HIDDEN}
    return {key: clean(value) for key, value in item.items() if key not in {"managedFields", _APPLIED}}


def scrub(text: str) -> str:
    """Return a text without passwords in URLs, bearer tokens and values with confidential names. Pure."""
    text = _PASSWORD.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def _add(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = scrub(text).encode(errors="replace")
    if len(content) > FILE_LIMIT:
        content = b"[cut: the last part follows]\n" + content[-FILE_LIMIT:]
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), int(time.time()), 0o644
    tar.addfile(member, io.BytesIO(content))
