"""The losses that a scan differentiates."""

import sys

import pytest
import torch
import transformers

from asysi.bus.packet import Reduction
from asysi.contract.errors import ConfigError
from asysi.model.loss import IGNORED, labels_of, make_loss, refuse_loss

CONFIG = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8, bos_token_id=0)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(CONFIG).eval()


def test_lm_and_the_models_own_loss_are_the_same_number(model):
    """Both are the mean cross-entropy of the next token, without padding: 6 tokens are predicted here."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    lm, own = make_loss("lm"), make_loss("module")
    assert (lm.reduction, own.reduction) == (Reduction.MEAN, Reduction.UNKNOWN)
    logits = model(**inputs).logits.log_softmax(-1)
    predicted = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    expected = -sum(logits[i, j, IDS[i, j + 1]] for i, j in predicted) / len(predicted)
    assert labels_of(inputs)[1, 3] == IGNORED
    assert lm.compute(model, inputs).item() == pytest.approx(expected.item(), rel=1e-6)
    assert own.compute(model, inputs).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_a_next_token_has_a_loss_of_zero(model):
    """Sequences of one token predict nothing: their gradient is zero, not NaN."""
    loss = make_loss("lm").compute(model, {"input_ids": IDS[:, :1]})
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    model.zero_grad()


def test_a_function_of_ones_own_gets_output_and_inputs(model, monkeypatch):
    """python://module:function is called with what the forward returned and what it was given."""
    module = type(sys)("asysi_test_loss")
    module.energy = lambda output, inputs: output.logits.square().sum() / inputs["input_ids"].numel()
    module.table = lambda output, _inputs: output.logits
    monkeypatch.setitem(sys.modules, "asysi_test_loss", module)
    found = make_loss("python://asysi_test_loss:energy").compute(model, {"input_ids": IDS})
    assert found.item() == pytest.approx(model(IDS).logits.square().sum().item() / 8, rel=1e-6)
    with pytest.raises(ConfigError, match=r"python://asysi_test_loss:table is a tensor \[2, 4, 20\]"):
        make_loss("python://asysi_test_loss:table").compute(model, {"input_ids": IDS})


class Plain(torch.nn.Module):
    """Returns a tensor [batch, length, 3]."""

    def forward(self, input_ids):
        return torch.zeros(*input_ids.shape, 3)


@pytest.mark.parametrize(
    ("name", "root", "output", "said"),
    [
        ("module", Plain(), None, "the forward of Plain has no such argument"),
        ("lm", Plain(), torch.zeros(2, 4), r"Plain returns \[2, 4\] for 8 tokens"),
        ("lm", transformers.GPT2Model(CONFIG), torch.zeros(2, 4, 8), "GPT2Model is a model without a head"),
        ("python://no_such_module:f", Plain(), None, "cannot be imported"),
        ("ml", Plain(), None, "is not none, lm, module or"),
    ],
)
def test_a_loss_that_a_model_cannot_have_is_refused(name, root, output, said):
    """Before the run, with what is missing."""
    with pytest.raises(ConfigError, match=said):
        refuse_loss(name, root, output, 8)


def test_a_loss_that_fits_is_not_refused(model):
    """Causal models with a head, and tensors that are logits, have a loss."""
    refuse_loss("lm", model, torch.zeros(2, 4, 20), 8)
    refuse_loss("module", model, None, 8)
    refuse_loss("lm", Plain(), torch.zeros(2, 4, 3), 8)
    refuse_loss("none", Plain(), None, 8)
