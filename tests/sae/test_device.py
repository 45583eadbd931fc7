"""Training on a GPU is the same code with another device; where there is none it is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asysi.contract.errors import ConfigError
from asysi.contract.spec import Sae, SaeTrain, ScanExperiment
from asysi.contract.variants import VARIANTS
from asysi.model.devices import device_for
from asysi.sae.processor import bfloat16_is_fast
from asysi.sae.selection import order_of, top_k
from asysi.sae.trainer import Trainer
from asysi.sae.training import Training
from asysi.sae.variants import topk, variant
from asysi.sae.variants.base import StepContext
from asysi.sae.variants.topk import TopK
from asysi.sae.worker import SAETrainerWorker
from asysi_operator.allowed import Allowed, violations
from asysi_operator.manifests import build

WIDTH, LATENTS = 16, 64
CONFIG = SaeTrain(latents=LATENTS, k=4, batch=32)


def experiment(**sae):
    return ScanExperiment.model_validate({
        "metadata": {"name": "minilm"},
        "spec": {
            "model": {"uri": "file:///m"}, "data": {"uri": "jsonl:///t.jsonl"}, "workload": {"scan": {}},
            "capture": {"hookPoints": ["*"]}, "sae": sae,
        },
    })  # fmt: skip


# -- what there is


@pytest.mark.parametrize(
    ("cuda", "visible", "said"),
    [
        (None, None, r"is built without CUDA: install a build with it, or set spec.sae.gpus to 0"),
        ("13.0", None, r"torch finds no CUDA device here, or set"),
        ("13.0", "", r"no CUDA device here \(CUDA_VISIBLE_DEVICES is ''\)"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch, cuda, visible, said):
    """The message names the field, says what torch sees, and what to do; on CPUs nothing is asked for."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=rf"^spec.sae.gpus: is 1, but .*{said}"):
        device_for(1, "spec.sae.gpus")
    assert device_for(0, "spec.sae.gpus") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without a GPU can refuse")
def test_the_worker_refuses_to_start_without_one(tmp_path):
    """The SAE worker ends as a mistake of the spec, before it takes a row."""
    worker = SimpleNamespace(experiment=experiment(gpus=1), output=tmp_path, workspace=tmp_path)
    with pytest.raises(ConfigError, match=r"^spec.sae.gpus: is 1, but"):
        SAETrainerWorker(worker, None)


def test_a_variant_of_cpus_is_refused_by_name(tmp_path, monkeypatch):
    """A variant says on which devices it can be trained; on another one it is not."""
    Trainer(CONFIG, tmp_path / "topk.ckpt", None, "cuda")
    monkeypatch.setattr(TopK, "devices", ("cpu",))
    with pytest.raises(ConfigError, match=r"spec.sae.gpus: the variant topk of the trainer topk is trained"):
        Trainer(CONFIG, tmp_path / "topk.ckpt", None, "cuda")


# -- the same code


def trained(device):
    training = Training(CONFIG, "a", WIDTH, torch.float32, 1 << 20, device=device)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(0, 1, (256, WIDTH)).astype(np.float32))
    with torch.inference_mode():
        training.begin(rows)
        for start in range(0, 256, 32):
            training.learn(rows[start : start + 32].clone())  # it scales what it is given
    return training, rows


def test_a_checkpoint_is_of_no_device():
    """State is on the CPU wherever it was trained; who goes back to it goes on with the same bits."""
    one, rows = trained("cpu")
    tensors, words = one.state()
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    other = Training(CONFIG, "a", WIDTH, torch.float32, 1 << 20, device="cpu")
    with torch.inference_mode():
        other.restore(saved, words)
        one.learn(rows[:32].clone())
        other.learn(rows[:32].clone())
    assert torch.equal(one.sae.parameters, other.sae.parameters)
    assert other.sae.parameters.dtype is torch.float32  # the master weights
    moved = one.sae.on("cpu")
    assert torch.equal(moved.parameters, one.sae.parameters)
    assert moved.parameters.data_ptr() != one.sae.parameters.data_ptr()


def test_all_of_a_training_is_on_its_device():
    """Parameters, gradient, both moments, the count of steps and of idle rows; rows wait on the CPU."""
    training = Training(CONFIG, "a", WIDTH, torch.bfloat16, 1 << 20, device="meta")
    there = [
        training.sae.parameters, training.sae.W_dec, training._gradient.parameters, training._adam.mean,
        training._adam.square, training._adam.steps, training._idle,
        *(tensor for moment in training._moments for tensor in moment.values()),
    ]  # fmt: skip
    assert {tensor.device.type for tensor in there} == {"meta"}
    assert training.sae.to(torch.float64).parameters.device.type == "meta"
    assert training._buffer.rows.device.type == training._held.rows.device.type == "cpu"
    assert training._fast
    assert bfloat16_is_fast("cuda")


def test_no_step_mixes_devices(monkeypatch):
    """The arithmetic of a step on another device: a tensor that was left on the CPU would be an error."""
    monkeypatch.setattr(topk, "squares", lambda _: 1.0)  # numbers are what this device has not
    monkeypatch.setattr(torch, "bincount", lambda numbers, minlength: numbers.new_zeros(minlength))
    sae, gradient = (TopK(WIDTH, LATENTS, 4, auxk=CONFIG.auxk).on("meta") for _ in range(2))
    x = torch.empty(32, WIDTH, device="meta")
    dead = torch.arange(5, device="meta")
    for fast in (False, True):
        seen = sae._reconstruct(x, x, 4, fast=fast)
        assert seen.error.device.type == seen.columns.device.type == "meta"
        assert seen.error.dtype is torch.float32
        sae._add_auxk(seen, gradient, dead, scale=1.0)
        sae._add_reconstruction(seen, gradient, scale=1.0)
    sae.project(gradient)
    sae.constrain()
    with pytest.raises(RuntimeError, match="device"):
        sae._reconstruct(torch.empty(32, WIDTH), torch.empty(32, WIDTH), 4, fast=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_mixes_devices(name, monkeypatch):
    """Loss, gradient and constraints of every variant on another device keep to it."""
    monkeypatch.setattr("asysi.sae.variants.affine.spread", lambda _: 1.0)  # this device has no numbers
    sae = variant(name).from_spec(SaeTrain(variant=name, latents=LATENTS, k=4), WIDTH, WIDTH).on("meta")
    assert "cuda" in sae.devices
    gradient, x = sae.twin(), torch.empty(32, WIDTH, device="meta")
    for dead in (torch.arange(0, device="meta"), torch.arange(5, device="meta")):
        with sae._tracked(gradient):
            found = sae.loss(x, x, StepContext(dead, sparsity=0.5))
            found.loss.backward()
        assert found.active.device.type == gradient.parameters.device.type == "meta"
    sae.project(gradient)
    sae.constrain()
    assert sae.infer(sae.preactivations(x)).device.type == "meta"
    assert sae.frozen(0.5, 0.5).device.type == "meta"


@given(st.lists(st.integers(0, 9), max_size=50), st.sampled_from([10, 2**15, 2**20]))
def test_every_device_sorts_alike(numbers, below):
    """The order of a CPU is that of torch's stable sort, which another device takes."""
    flat = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(order_of(flat, below), torch.argsort(flat, stable=True))
    values = torch.from_numpy(np.random.default_rng(len(numbers)).permutation(600).astype(np.float32)).view(
        2, 300
    )
    found, columns = top_k(values, 5)
    assert torch.equal(found.sort().values, values.topk(5).values.sort().values)
    assert torch.equal(values.gather(1, columns), found)


def test_a_step_on_the_cpu_keeps_to_it():
    """What fired is on the parameters' device, as everything else of a step is."""
    training, rows = trained("cpu")
    outcome = training.sae.differentiate(rows[:8], rows[:8], training._gradient, StepContext())
    assert outcome.fired.device == training.sae.device == torch.device("cpu")


# -- the pod


def sae_container(made):
    pod = next(one for one in build(made, image="i") if one["kind"] == "Job")["spec"]["template"]["spec"]
    return next(one for one in (*pod["initContainers"], *pod["containers"]) if one["name"] == "sae")


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"])
def test_the_pod_asks_for_what_the_cluster_offers(resource):
    """The container sae has the GPU as request and limit, by the name that the spec gives; without, it has
    none.
    """
    given = sae_container(experiment(gpus=1, gpuResource=resource))["resources"]
    assert given["limits"][resource] == given["requests"][resource] == "1"
    plain = sae_container(experiment())["resources"]
    assert not [name for name in plain["limits"] if "/" in name]
    assert Sae().gpus == 0


def test_the_cluster_may_allow_fewer():
    """The GPUs of host and trainer count together."""
    assert violations(experiment(gpus=1), Allowed(gpus=1)) == []
    (said,) = violations(experiment(gpus=1), Allowed(gpus=0))
    assert said == "spec.resources.host.gpus is 0 and spec.sae.gpus 1, and 0 is allowed"
