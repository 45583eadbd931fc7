"""What the rings and a GPU's slots take, by arithmetic."""

import pytest

from asysi.contract.spec import ScanExperiment
from asysi.hosts.rings import plan_device_slots
from asysi.model.points import HookPoint

POINTS = [HookPoint(f"layers.{i}", None, (4, 8, 2048), "float32", calls=1 + (i == 0)) for i in range(3)]


def spec(gpus, quantization):
    return ScanExperiment.model_validate(
        {
            "apiVersion": "asysi.dev/v1alpha1",
            "kind": "ScanExperiment",
            "metadata": {"name": "x"},
            "spec": {
                "model": {"uri": "file:///model"},
                "data": {"uri": "jsonl:///rows.jsonl"},
                "workload": {"scan": {}},
                "capture": {"hookPoints": ["layers.*"], "size": "64Mi", "quantization": quantization},
                "resources": {"host": {"gpus": gpus}},
            },
        }
    ).spec


@pytest.mark.parametrize(
    ("quantization", "row"), [("none", 8192), ("bf16", 4096), ("fp8", 2052), ("int8", 8192)]
)
def test_slots_hold_rows_as_they_travel(quantization, row):
    """A slot has the bytes of a call's rows: two an element under bf16, one and a scale a row under fp8,
    under int8 those before the ranges are frozen; every call has one.
    """
    plan = plan_device_slots(spec(1, quantization), POINTS, 16, 32)
    assert plan is not None
    assert (plan.calls, plan.slot_bytes) == (4, 512 * row)
    assert plan.slots == min(32, (64 << 20) // plan.slot_bytes)


def test_without_a_gpu_there_are_no_slots():
    """A host on CPUs takes no device memory."""
    assert plan_device_slots(spec(0, "bf16"), POINTS, 16, 32) is None
