"""The rendered objects: what the cluster is promised."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import MODULES, PORTS, Container, Env
from asysi.contract.spec import ScanExperiment
from asysi.contract.workloads import WORKLOADS
from asysi_operator.manifests import build
from asysi_operator.manifests.network_policy import needs_network

SIDECARS = ["archiver", "sae", "hook"]


def test_order_of_containers(render):
    """Prepare comes first, then the sidecars archiver, sae and hook; host and finish run side by side."""
    assert [item["name"] for item in render().inits] == ["prepare", *SIDECARS]
    assert [item["name"] for item in render().mains] == ["host", "finish"]


def test_sidecars_are_native(render):
    """Sidecars, and no others, restart in place and have probes; the pod itself is never restarted."""
    for item in render().containers:
        sidecar = item["name"] in SIDECARS
        assert (item.get("restartPolicy") == "Always") is sidecar
        assert ("startupProbe" in item) is sidecar
        assert ("livenessProbe" in item) is sidecar
    assert render().pod["restartPolicy"] == "Never"


def test_probes_ask_ports_that_are_there(render):
    """Each probe asks a named port of its own container; ports are the contract's and distinct."""
    numbers = []
    for item in render().containers:
        names = {port["name"]: port["containerPort"] for port in item.get("ports", [])}
        numbers += names.values()
        for probe in ("startupProbe", "livenessProbe"):
            if probe in item:
                assert names[item[probe]["httpGet"]["port"]] == PORTS[Container(item["name"])]
    assert len(numbers) == len(set(numbers)) == len(PORTS)


def test_commands(render):
    """Each container runs its module of the contract, under the entrypoint of its image."""
    modules = MODULES | {Container.HOST: WORKLOADS["scan"].module}
    for item in render().containers:
        assert item["args"] == ["python", "-m", modules[Container(item["name"])]]
        assert "command" not in item


def test_absent_consumers_have_no_container(render):
    """Without archive or SAEs there is no container, no port and no wait for them."""
    without_archive = render({"archive": {"enabled": False}})
    assert [item["name"] for item in without_archive.inits] == ["prepare", "sae", "hook"]
    without_sae = render({"sae": None})
    assert [item["name"] for item in without_sae.inits] == ["prepare", "archiver", "hook"]


def test_guaranteed(render):
    """Every container has the same CPU and memory as request and as limit, so the pod is Guaranteed."""
    pod = render({"resources": {"host": {"cpus": 2, "gpus": 1}}})
    for item in pod.containers:
        asked, limit = item["resources"]["requests"], item["resources"]["limits"]
        assert {**asked, "ephemeral-storage": None} == {**limit, "ephemeral-storage": None}
        assert {"cpu", "memory"} <= set(item["resources"]["limits"])
    assert pod.container("host")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod.container("host")["resources"]["limits"]["cpu"] == "2"
    assert pod.container("hook")["resources"]["limits"]["cpu"] == "1"
    assert pod.container("finish")["resources"]["limits"]["cpu"] == "250m"


RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
    "secret",
}  # fmt: skip


def test_pod_security_restricted(render):
    """The pod keeps every rule of Pod Security's level `restricted`.

    The rules: nothing of the node is shared, no host ports, no privilege and no escalation, not root, every
    capability dropped, seccomp RuntimeDefault, default proc mount and sysctls, and harmless volumes.
    """
    pod = render().pod
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "sysctls" not in pod["securityContext"]
    for item in [*pod["initContainers"], *pod["containers"]]:
        security = item["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["runAsNonRoot"] is True
        assert not {"privileged", "procMount", "runAsUser", "seLinuxOptions"} & set(security)
        assert not any("hostPort" in port for port in item.get("ports", []))
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= RESTRICTED_VOLUMES


def test_nothing_but_volumes_is_writable(render):
    """The root file system is read-only, and each container has a /tmp that no other sees."""
    pod = render()
    for item in pod.containers:
        assert item["securityContext"]["readOnlyRootFilesystem"] is True
        tmp = next(mount for mount in item["volumeMounts"] if mount["mountPath"] == "/tmp")
        assert tmp["subPath"] == item["name"]


def test_no_token_of_the_api(render):
    """The pod holds no credentials of the cluster and no addresses of its services."""
    assert render().pod["automountServiceAccountToken"] is False
    assert render().pod["enableServiceLinks"] is False


def test_the_host_sees_the_capture_ring_alone(render):
    """The host has a /dev/shm of its own, and of the rings only `capture`; the others see all of them."""
    pod = render({"resources": {"host": {"shm": "256Mi"}}})
    mounts = {mount["mountPath"]: mount for mount in pod.container("host")["volumeMounts"]}
    assert mounts["/dev/shm"]["name"] == "host-shm"
    assert mounts["/dev/shm/asysi/capture"] == {
        "name": "rings", "mountPath": "/dev/shm/asysi/capture", "subPath": "capture",
    }  # fmt: skip
    assert "/dev/shm/asysi" not in mounts
    for name in ("prepare", *SIDECARS, "finish"):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container(name)["volumeMounts"]}
        assert mounts["/dev/shm/asysi"] == "rings"
    volumes = {volume["name"]: volume for volume in pod.pod["volumes"]}
    assert volumes["host-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}


def test_every_mount_has_a_volume(render):
    """No container mounts a volume that is not there, and none is there for nobody."""
    pod = render()
    used = {mount["name"] for item in pod.containers for mount in item["volumeMounts"]}
    assert used == {volume["name"] for volume in pod.pod["volumes"]}


def test_environment(render):
    """Every container gets the contract's variables, memory from its limit; prepare takes the attempt."""
    for item in render().containers:
        variables = {variable["name"]: variable for variable in item["env"]}
        assert set(variables) & set(Env) == set(Env) - {Env.ATTEMPT, Env.MODULES}
        assert variables[Env.MEMORY]["valueFrom"] == {"resourceFieldRef": {"resource": "limits.memory"}}
        assert variables[Env.TERMINATION]["value"] == item["terminationMessagePath"]


def test_attempts(render):
    """A dead host is a new pod, up to maxRestarts; no limit per index keeps a failed pod waiting."""
    job = render({"lifecycle": {"maxRestarts": 5}}).job
    assert (job["backoffLimit"], job["completionMode"]) == (5, "Indexed")
    assert "backoffLimitPerIndex" not in job
    assert (job["completions"], job["parallelism"]) == (1, 1)
    assert job["podReplacementPolicy"] == "Failed"


def test_bad_configuration_fails_the_job(render):
    """Exit 2 of prepare, host or finish fails the Job before any rule that would try again."""
    rules = render().job["podFailurePolicy"]["rules"]
    refusing = [rule["onExitCodes"] for rule in rules[:3] if rule["action"] == "FailJob"]
    assert {rule["containerName"] for rule in refusing} == {"prepare", "host", "finish"}
    assert all(rule["operator"] == "In" and rule["values"] == [2] for rule in refusing)


def test_rings_volume_holds_both_rings(render):
    """The rings' volume holds what the spec gives both rings, their control files and a little more."""
    from asysi.contract.quantity import parse_bytes
    from asysi_ring import required_bytes

    pod = render({"capture": {"hookPoints": ["*"], "size": "2Gi"}, "bus": {"size": "4Gi", "shards": 64},
                  "resources": {"prepare": {"memory": "8Gi"}}})  # fmt: skip
    volume = next(volume for volume in pod.pod["volumes"] if volume["name"] == "rings")
    needed = required_bytes(shards=1, chunks=2048, chunk_bytes=1 << 20) + required_bytes(
        shards=64, chunks=256, chunk_bytes=1 << 18
    )
    assert needed <= parse_bytes(volume["emptyDir"]["sizeLimit"]) <= needed * 1.1
    assert volume["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"bus": {"size": "64Gi"}},
            ["memory limits of archiver, sae, hook, host, finish", "of rings", "bus.size"],
        ),
    ],
    ids=["rings"],
)
def test_impossible_memory_is_refused(render, spec, words):
    """Limits under which the kernel would kill are refused with the arithmetic."""
    with pytest.raises(ConfigError) as refusal:
        render(spec)
    for word in words:
        assert word in str(refusal.value)


def test_consumer_mode_has_no_pod_yet(render):
    """What cannot be rendered is refused by name."""
    with pytest.raises(ConfigError, match=r"spec\.mode .* CONSUMER"):
        render({"mode": "CONSUMER"})


def test_config_map_holds_the_whole_experiment(render, experiment):
    """The workers read back exactly the experiment, nulls included."""
    wanted = experiment({"sae": None, "archive": {"rotate": "2Gi"}})
    text = render(wanted).by_kind["ConfigMap"]["data"]["experiment.json"]
    assert ScanExperiment.model_validate(json.loads(text)) == wanted


def test_output(render):
    """Results go to a claim of the experiment's own, or to the user's, which is not made again."""
    own = render({"output": {"size": "20Gi"}})
    assert own.by_kind["PersistentVolumeClaim"]["metadata"]["name"] == "minilm-output"
    assert own.by_kind["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == "20Gi"
    users = render({"output": {"claim": "results"}})
    assert "PersistentVolumeClaim" not in users.by_kind
    volume = next(volume for volume in users.pod["volumes"] if volume["name"] == "output")
    assert volume["persistentVolumeClaim"]["claimName"] == "results"


def test_the_claim_that_is_made_is_as_the_spec_says(render):
    """Class and access modes are Kubernetes' own; unset, the cluster's default class is not overruled."""
    assert "storageClassName" not in render().by_kind["PersistentVolumeClaim"]["spec"]
    chosen = {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]}
    spec = render({"output": chosen}).by_kind["PersistentVolumeClaim"]["spec"]
    assert (spec["storageClassName"], spec["accessModes"]) == ("fast", ["ReadWriteMany"])


def test_a_retained_claim_has_no_owner(render):
    """What shall outlive its experiment does not name it as its owner; all else does."""
    objects = render({"output": {"whenDeleted": "Retain"}}, {"uid": "1-2-3"}).objects
    owned = {item["kind"]: "ownerReferences" in item["metadata"] for item in objects}
    assert owned.pop("PersistentVolumeClaim") is False
    assert all(owned.values())


def test_names_and_labels(render):
    """Every object has a valid name, the user's labels and ours, and an owner once that has an identity."""
    metadata = {"name": "a" * 52, "namespace": "lab", "labels": {"team": "x", "asysi.dev/experiment": "no"}}
    for item in render(None, metadata).objects:
        suffix = "-0-abcde" if item["kind"] == "Job" else ""  # of its pods
        assert len(item["metadata"]["name"] + suffix) <= 63
        assert item["metadata"]["namespace"] == "lab"
        assert item["metadata"]["labels"]["team"] == "x"
        assert item["metadata"]["labels"]["asysi.dev/experiment"] == "a" * 52
        assert "ownerReferences" not in item["metadata"]
    for item in render(None, {"uid": "1-2-3"}).objects:
        assert item["metadata"]["ownerReferences"][0]["uid"] == "1-2-3"


@pytest.mark.parametrize(
    ("spec", "network"),
    [
        ({}, False),
        ({"model": {"uri": "python://package.module:factory"}}, False),
        ({"model": {"uri": "hf://owner/name"}}, True),
        ({"data": {"uri": "jsonl://s3://bucket/rows"}}, True),
        ({"output": {"uri": "gs://bucket"}}, True),
        ({"workload": {"custom": {"image": "mine", "command": ["x"]}}}, True),
    ],
)
def test_the_network_is_closed_unless_needed(render, experiment, spec, network):
    """Nothing leaves a pod whose sources are on the node; its ports alone can be reached."""
    assert needs_network(experiment(spec).spec) is network
    policy = render(spec).by_kind["NetworkPolicy"]["spec"]
    assert policy["egress"] == ([{}] if network else [])
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == set(PORTS.values())
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_who_may_read_metrics(experiment):
    """Named readers alone reach the pods' ports; with none of them nobody does."""
    peer = {"namespaceSelector": {"matchLabels": {"team": "watchers"}}}
    for readers, wanted in (([peer], [peer]), (None, None)):
        policy = next(one for one in build(experiment({}), readers=readers) if one["kind"] == "NetworkPolicy")
        [rule] = policy["spec"]["ingress"]
        assert rule.get("from") == wanted
    policy = next(one for one in build(experiment({}), readers=[]) if one["kind"] == "NetworkPolicy")
    assert policy["spec"]["ingress"] == []


def test_the_pod_runs_where_and_as_whom_the_spec_says(render):
    """Account, pull secrets, affinity and spread are Kubernetes' own, and the pod still has no token."""
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "zone"}
    scheduling = {
        "serviceAccountName": "robot",
        "imagePullSecrets": [{"name": "pull"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "topologyKey": "zone"}
            | {"labelSelector": {"matchLabels": {"app.kubernetes.io/part-of": "asysi"}}}
        ],
    }
    pod = render({"scheduling": scheduling}).pod
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("robot", [{"name": "pull"}])
    assert pod["automountServiceAccountToken"] is False
    [apart] = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "zone"
    assert apart["labelSelector"]["matchLabels"] == {"app": "x"}
    assert pod["topologySpreadConstraints"][0]["maxSkew"] == 1
    plain = {"serviceAccountName", "imagePullSecrets", "affinity", "topologySpreadConstraints"}
    assert not plain & set(render().pod)


def test_secrets_reach_only_those_who_need_them(render):
    """The model's Secret is for prepare alone, the output's for those who upload: whole, or by one key."""
    pod = render({
        "model": {"uri": "hf://a/b", "secretRef": {"name": "hub", "key": "HF_TOKEN"}},
        "output": {"uri": "s3://bucket/run", "secretRef": {"name": "bucket"}},
    })  # fmt: skip
    for item in pod.containers:
        keys = [v for v in item["env"] if "secretKeyRef" in v.get("valueFrom", {})]
        whole = item.get("envFrom", [])
        assert bool(keys) is (item["name"] == "prepare")
        assert whole == [{"secretRef": {"name": "bucket"}}] * (
            item["name"] in {"prepare", "archiver", "finish"}
        )
        assert "bucket" not in str(item.get("command", [])) + str(item.get("args", []))
        assert "hub" not in str(item.get("command", [])) + str(item.get("args", []))
        assert "HF_TOKEN" not in [variable["name"] for variable in item["env"] if item["name"] != "prepare"]
    assert pod.by_kind["NetworkPolicy"]["spec"]["egress"] == [{}]


def test_objects_are_plain_data(render):
    """What is rendered is what YAML can say: reading it back gives the same."""
    objects = render().objects
    assert yaml.safe_load(yaml.safe_dump(objects)) == objects


def test_rendering_needs_neither_kopf_nor_kubernetes_nor_torch():
    """Rendering imports nothing that talks to a cluster, and nothing heavy."""
    heavy = ["kopf", "kubernetes", "torch", "numpy", "asysi_operator.local"]
    code = f"import sys, asysi_operator.manifests; sys.exit(bool(set({heavy}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_disk_of_the_node_is_bounded(render):
    """Every container asks for disk and has a limit; who writes the workspace may fill it, and no more."""
    pod = render({"resources": {"workspace": "3Gi"}})
    limits = {item["name"]: item["resources"]["limits"]["ephemeral-storage"] for item in pod.containers}
    assert {item["resources"]["requests"]["ephemeral-storage"] for item in pod.containers} == {"64Mi"}
    assert limits == dict.fromkeys(limits, "2Gi") | {"prepare": "5Gi", "host": "5Gi"}
    volumes = {one["name"]: one for one in pod.pod["volumes"]}
    assert volumes["workspace"]["emptyDir"] == {"sizeLimit": "3Gi"}
    assert all("sizeLimit" in one["emptyDir"] for one in volumes.values() if "emptyDir" in one)


@pytest.mark.parametrize(
    ("claim", "volume"),
    [
        ("models", "input-models"),
        ("a" * 57, f"input-{'a' * 57}"),
        ("data.team-a.example", "input-data-team-a-example-70e308ece4"),
    ],
)
def test_an_input_is_any_claim(render, claim, volume):
    """A claim's name is as long as Kubernetes has it; its volume's name is a DNS label all the same."""
    pod = render({"inputs": [{"claim": claim}]}).pod
    (found,) = [
        one for one in pod["volumes"] if one.get("persistentVolumeClaim", {}).get("claimName") == claim
    ]
    assert (found["name"], len(found["name"]) <= 63) == (volume, True)
    mount = next(one for one in pod["containers"][0]["volumeMounts"] if one["name"] == found["name"])
    assert mount == {"name": volume, "mountPath": f"/inputs/{claim}", "readOnly": True}


def test_two_long_claims_are_two_volumes(render):
    """Names that begin alike do not end in one volume."""
    claims = [f"{'a' * 240}.{end}" for end in ("b", "c")]
    volumes = render({"inputs": [{"claim": one} for one in claims]}).pod["volumes"]
    names = [one["name"] for one in volumes]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)


def test_a_users_labels_put_no_pod_behind_a_service(render):
    """On the pod they stand behind a prefix of ours; what selects by them elsewhere does not find it."""
    users = {"app": "payments", "example.com/team": "x", f"a.example/{'n' * 63}": "long"}
    rendered = render(metadata={"labels": users})
    labels = rendered.job["template"]["metadata"]["labels"]
    assert not users.items() & labels.items()
    assert labels["label.asysi.dev/app"] == "payments"
    assert labels["label.asysi.dev/example.com.team"] == "x"
    (long,) = [key for key, value in labels.items() if value == "long"]
    assert len(long.removeprefix("label.asysi.dev/")) == 63
    assert users.items() <= rendered.by_kind["Job"]["metadata"]["labels"].items()
