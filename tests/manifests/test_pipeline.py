"""The pipeline's Job: one index per shard, on the volume of the results."""

import pytest

OPERATORS = [{"operator": "template", "params": {"fields": {"text": "{{ text }}"}}}]


@pytest.fixture
def rows(render):
    """Renders the pipeline's Job; returns it and its one container."""

    def make(spec=None, metadata=None, **pipeline):
        uri = "jsonl:///data/text.jsonl"
        data = {"data": {"uri": uri, "pipeline": {"operators": OPERATORS, **pipeline}}}
        objects = render({**data, **(spec or {})}, metadata).objects
        (job,) = [one for one in objects if one["metadata"]["name"] == "minilm-rows" and one["kind"] == "Job"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return job, container

    return make


def test_a_shard_has_an_index(rows):
    """Completions are shards, all at once unless parallelism says otherwise."""
    spec = rows(shards=8)[0]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 8, 8)
    assert rows(shards=8, parallelism=2)[0]["spec"]["parallelism"] == 2


def test_a_dead_shard_is_tried_again_and_bad_configuration_is_not(rows):
    """All shards share one limit, the failure beyond it ends all; exit code 2 ends it at once."""
    spec = rows({"lifecycle": {"maxRestarts": 4}}, shards=2)[0]["spec"]
    assert spec["backoffLimit"] == 4
    assert not {"backoffLimitPerIndex", "maxFailedIndexes"} & set(spec)
    assert spec["podReplacementPolicy"] == "Failed"
    bad, moved = spec["podFailurePolicy"]["rules"]
    assert bad == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "pipeline", "operator": "In", "values": [2]},
    }
    assert moved["action"] == "Ignore"


def test_its_pods_meet_restricted_and_are_guaranteed(rows):
    """No privilege, a read-only root, no token; requests equal limits."""
    job, container = rows(cpus=0.5, memory="2Gi")
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    wanted = {"cpu": "500m", "memory": "2Gi"}
    assert container["resources"] == {
        "requests": wanted | {"ephemeral-storage": "64Mi"},
        "limits": wanted | {"ephemeral-storage": "52Gi"},
    }


def test_its_files_are_on_the_volume_of_the_results(rows):
    """It mounts the claim that the experiment's pod mounts, and no rings."""
    job, container = rows({"inputs": [{"claim": "texts"}]})
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/output"]["name"] == "output"
    assert mounts["/inputs/texts"]["readOnly"] is True
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["output"]["persistentVolumeClaim"] == {"claimName": "minilm-output"}
    assert "rings" not in volumes
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def test_shards_of_a_claim_of_ours_share_a_node(rows):
    """It can be on one node at a time; a claim of the user's may be on many."""
    (near,) = rows()[0]["spec"]["template"]["spec"]["affinity"]["podAffinity"].values()
    (term,) = near
    labels = rows()[0]["spec"]["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "affinity" not in rows({"output": {"claim": "shared"}})[0]["spec"]["template"]["spec"]


def test_keys_come_from_secrets(rows):
    """A Secret's key is a variable of that name, a Secret without a key all of its keys."""
    refs = [{"name": "openai", "key": "OPENAI_API_KEY"}, {"name": "store"}]
    _job, container = rows(secretRefs=refs)
    known = {item["name"]: item for item in container["env"]}
    ref = {"name": "openai", "key": "OPENAI_API_KEY"}
    assert known["OPENAI_API_KEY"]["valueFrom"] == {"secretKeyRef": ref}
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]


def test_the_experiments_pod_gets_no_keys_of_the_pipeline(render):
    """What the operators call, the model does not."""
    pipeline = {"operators": OPERATORS, "secretRefs": [{"name": "openai", "key": "KEY"}, {"name": "store"}]}
    found = render({"data": {"uri": "jsonl:///data/text.jsonl", "pipeline": pipeline}})
    assert "openai" not in str(found.pod)
    assert "store" not in str(found.pod)


def test_only_the_pipeline_may_call_out(render):
    """Its own policy opens the network for its pods; a remote input opens it for nobody else."""
    data = {"uri": "jsonl://s3://bucket/text.jsonl", "pipeline": {"operators": OPERATORS}}
    objects = render({"data": data}).objects
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert policies["minilm"]["egress"] == []
    assert policies["minilm-rows"]["egress"] == [{}]
    selected = policies["minilm-rows"]["podSelector"]["matchLabels"]
    assert selected["app.kubernetes.io/component"] == "pipeline"


def test_it_is_owned_queued_and_suspended_like_the_other(rows):
    """Owner, Kueue's label, suspension and deadline are those of the experiment's Job."""
    job, _container = rows({"scheduling": {"queueName": "team"}}, {"uid": "1-2-3"})
    assert job["metadata"]["ownerReferences"][0]["uid"] == "1-2-3"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in job["spec"]
    spec = rows({"lifecycle": {"suspend": True, "activeDeadlineSeconds": 9}})[0]["spec"]
    assert (spec["suspend"], spec["activeDeadlineSeconds"]) == (True, 9)


def test_the_longest_name_leaves_room_for_every_index(rows, render):
    """The name of a pod of the last index of the longest name is a DNS label."""
    pipeline = {"operators": OPERATORS, "shards": 1024}
    made = render({"data": {"uri": "jsonl:///a", "pipeline": pipeline}}, {"name": "a" * 52}).objects
    assert max(len(f"{one['metadata']['name']}-1023") for one in made if one["kind"] == "Job") <= 63
