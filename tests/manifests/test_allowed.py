"""What an installation lets experiments choose."""

import pytest

from asysi_operator.allowed import Allowed, violations

PIPELINE = {
    "data": {
        "uri": "jsonl:///d",
        "pipeline": {"operators": [{"operator": "m:C"}], "cpus": 9.0, "memory": "11Gi"},
    }
}
NODE = {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}
CASES = {
    "serviceAccountName": ({"scheduling": {"serviceAccountName": "robot"}}, {"serviceAccounts": ["robot"]}),
    "priorityClassName": (
        {"scheduling": {"priorityClassName": "low-1"}},
        {"priorityClasses": ["low-*", "other"]},
    ),
    "runtimeClassName": ({"scheduling": {"runtimeClassName": "gvisor"}}, {"runtimeClasses": ["gvisor"]}),
    "nodeSelector": ({"scheduling": {"nodeSelector": {"pool": "a"}}}, {"nodeLabels": ["pool"]}),
    "nodeAffinity": (
        {
            "scheduling": {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [NODE]}
                    }
                }
            }
        },
        {"nodeLabels": ["pool"]},
    ),
    "affinity.nodeAffinity": (
        {
            "scheduling": {
                "affinity": {
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": NODE}]
                    }
                }
            }
        },
        {"nodeLabels": ["pool"]},
    ),
    "tolerations": ({"scheduling": {"tolerations": [{"key": "gpu"}]}}, {"taints": ["gpu"]}),
    "every taint": ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, {"taints": ["*"]}),
    "custom.image": (
        {"workload": {"custom": {"image": "r/team/x:1", "command": ["x"]}}},
        {"images": ["r/team/*"]},
    ),
    "CPUs": (PIPELINE, {"cpus": 9.0}),
    "memory": ({"resources": {"host": {"memory": "32Gi"}}}, {"memory": "64Gi"}),
    "gpus": ({"resources": {"host": {"gpus": 2}}}, {"gpus": 2}),
}
LESS = {
    **{
        key: ["none"]
        for key in ("serviceAccounts", "priorityClasses", "runtimeClasses", "images", "nodeLabels", "taints")
    },
    "cpus": 5.0,
    "memory": "10Gi",
    "gpus": 1,
}


@pytest.mark.parametrize("what", CASES)
def test_what_is_not_allowed_is_named(what, experiment):
    """A choice is refused by its field where it is not allowed, and passes where it is."""
    spec, allowing = CASES[what]
    refused = violations(experiment(spec), Allowed.model_validate({key: LESS[key] for key in allowing}))
    assert len(refused) == 1, refused
    assert what in refused[0]
    assert violations(experiment(spec), Allowed.model_validate(allowing)) == []


def test_by_default_all_but_service_accounts_may_be_chosen(experiment):
    """An upgrade refuses nothing that ran before; the new field is closed until somebody opens it."""
    for what, (spec, _allowing) in CASES.items():
        assert bool(violations(experiment(spec), Allowed())) is (what == "serviceAccountName")


@pytest.mark.parametrize("told", [{"cpus": 0}, {"memory": "much"}, {"serviceAccount": ["x"]}, {"gpus": -1}])
def test_nonsense_is_no_rule(told):
    """A limit that means nothing, or a misspelt one, stops the operator and is not taken for none."""
    with pytest.raises(ValueError, match=next(iter(told))):
        Allowed.model_validate(told)
