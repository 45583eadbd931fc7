"""Whatever an experiment says, its pod stays within Pod Security's level `restricted`, and is nobody else's.

The experiments are made by chance over the whole schema, with content that would be dangerous elsewhere:
paths out of folders, shell, templates, names of privileges. ASYSI_HOSTILE_EXPERIMENTS says how many (10,000
for the promise, fewer by default); they are the same ones each time.
"""

import os
import random
import re
from collections.abc import Iterator
from typing import Any

from asysi.contract.available import REFUSALS
from asysi.contract.crd import structural
from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MODULES, Container
from asysi.contract.spec import Spec
from asysi.contract.workloads import WORKLOADS
from asysi_operator.acceptance import validate
from asysi_operator.allowed import Allowed, violations
from asysi_operator.manifests import build

Tree = dict[str, Any]
MODULE_OF = MODULES | {Container.HOST: WORKLOADS["scan"].module}
COUNT = int(os.environ.get("ASYSI_HOSTILE_EXPERIMENTS", "500"))
TEXTS = (
    *("../../etc/passwd", "/var/run/secrets/kubernetes.io/serviceaccount/token", "$(id)", "`id`", "{{ x }}"),
    *(
        "$(ASYSI_OUTPUT)",
        "hostPath",
        "privileged: true",
        "\n- name: own",
        '"}]}',
        "a\x00b",
        "Ünïcode",
        "x" * 99,
    ),
)
PATTERNED = (*("5Gi", "1Gi", "700Mi", "0.5Ti"), "0" * 64, *("a", "b-1", "gpu", "kube-system", "nvidia.com"))
URIS = ("file:///inputs/a/{}", "file:///{}", "jsonl:///inputs/b-1/{}", "hf://owner/{}", "python://{}:model")
ABSENT = {
    refusal.pattern.removeprefix("spec.")
    for refusal in REFUSALS
    if refusal.available is None or refusal.pattern in {"spec.mode", "spec.workload.scan.loss"}
}
"""Fields of which every other value is refused: that is a claim of its own, and would leave little here."""
FORBIDDEN = {
    *("hostPath", "hostNetwork", "hostPID", "hostIPC", "hostPort", "hostUsers", "hostAliases", "procMount"),
    *("privileged", "serviceAccountName", "serviceAccount", "sysctls", "seLinuxOptions", "windowsOptions"),
    *("ephemeralContainers", "shareProcessNamespace", "subPathExpr", "nodeName", "hostname", "secret"),
    *("projected", "csi", "downwardAPI", "lifecycle", "resourceClaims"),
}
"""Keys that no pod of an experiment has anywhere."""
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def by_chance(chance: random.Random, schema: Tree, path: str = "") -> Any:  # noqa: PLR0911 - a type each
    """Return a value that a structural schema takes, as far as it can be told without trying."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    match schema["type"]:
        case "object" if "properties" in schema:
            required = schema.get("required", [])
            chosen = [
                key
                for key in schema["properties"]
                if key in required or (f"{path}{key}" not in ABSENT and chance.random() < 0.4)
            ]
            return {key: by_chance(chance, schema["properties"][key], f"{path}{key}.") for key in chosen}
        case "object":
            values = schema.get("additionalProperties", {"type": "string", "maxLength": 9})
            return {
                chance.choice(PATTERNED[4:]): by_chance(chance, values) for _ in range(chance.randint(0, 2))
            }
        case "array":
            least = schema.get("minItems", 0)
            return [
                by_chance(chance, schema["items"], f"{path[:-1]}[].")
                for _ in range(max(least, chance.randint(0, 2)))
            ]
        case "boolean":
            return chance.random() < 0.7
        case "integer":
            low = schema.get("minimum", 0)
            return min(low + chance.choice((0, 1, 7, 500)), schema.get("maximum", 2**40))
        case "number":
            return min(
                schema.get("minimum", 0) + chance.choice((0.3, 0.01, 1, 2)), schema.get("maximum", 1024)
            )
    if "pattern" in schema:
        fits = [text for text in PATTERNED if re.search(schema["pattern"], text)]
        return chance.choice([text for text in fits if len(text) <= schema["maxLength"]] or ["0"])
    text = chance.choice(TEXTS)
    return chance.choice(URIS).format(text) if path.endswith(("uri.", "tokenizer.")) else text


def experiments() -> Iterator[Tree]:
    """Yield hostile experiments, the same ones each time."""
    chance, schema = random.Random(7), structural(Spec)
    for _ in range(COUNT):
        spec = by_chance(chance, schema)
        spec["workload"] = {"scan": by_chance(chance, schema["properties"]["workload"]["properties"]["scan"])}
        spec["workload"]["scan"].pop("loss", None)
        spec["inputs"] = [{"claim": "a"}, {"claim": "b-1"}]
        spec["data"] = {"uri": "jsonl:///inputs/a/" + chance.choice(TEXTS).replace("..", "_")}
        spec["model"] |= {
            "uri": chance.choice(URIS).format(chance.choice(TEXTS)),
            "revision": None,
            "sha256": None,
        }
        spec["capture"] = {"hookPoints": [chance.choice(TEXTS)], "size": chance.choice(("8Mi", "64Mi"))}
        labels = {"team": "x", "kubernetes.io/metadata.name": "kube-system", "job-name": "own"}
        yield {"metadata": {"name": "minilm", "namespace": "lab", "uid": "1", "labels": labels}, "spec": spec}


def test_every_pod_is_restricted_and_nobody_elses():
    """None gets a privilege, a path of the node, a token, a command, another image or others' labels."""
    accepted = 0
    for tree in experiments():
        try:
            experiment = validate(tree)
            objects = build(experiment, image="the-image")
        except ConfigError:
            continue
        if violations(experiment, Allowed()):
            continue
        accepted += 1
        job = next(item for item in objects if item["kind"] == "Job")["spec"]["template"]
        harmless(
            job["spec"], {"minilm-output", tree["spec"].get("output", {}).get("claim") or "minilm-output"}
        )
        for item in objects:
            assert item["metadata"]["namespace"] == "lab"
            reserved = {
                key
                for key in item["metadata"]["labels"]
                if "kubernetes.io/metadata" in key or key == "job-name"
            }
            assert not reserved
    assert accepted >= COUNT // 10


def harmless(pod: Tree, claims: set[str]) -> None:
    """Hold a pod against the level `restricted`, and against what is ours alone to choose."""
    assert not FORBIDDEN & set(keys(pod))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == SECURITY
        assert container["image"] == "the-image"
        assert container["args"] == ["python", "-m", MODULE_OF[Container(container["name"])]]
        assert "command" not in container
        for source in container.get("envFrom", []):  # a Secret of the experiment's own namespace, by its name
            assert container["name"] in {"prepare", "archiver", "finish"}
            assert source.keys() == {"secretRef"}
            assert source["secretRef"].keys() == {"name"}
        for mount in container["volumeMounts"]:
            assert ".." not in mount["mountPath"]
            assert mount.get("subPath", "tmp") in {*Container, "capture", "tmp"}
    for volume in pod["volumes"]:
        (kind,) = volume.keys() - {"name"}
        assert kind in {"emptyDir", "configMap", "persistentVolumeClaim"}
        if kind == "persistentVolumeClaim":
            assert volume[kind]["claimName"] in claims | {"a", "b-1"}


def keys(node: Any) -> Iterator[str]:
    """Yield every key of a tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from keys(value)
    elif isinstance(node, list):
        for item in node:
            yield from keys(item)
