"""Model creation and initial weights."""

import torch
from torch import nn

from asysi.contract.errors import ConfigError
from asysi.train.config import TrainConfig
from asysi.train.factory import instantiated


def make_model(config: TrainConfig) -> nn.Module:
    """Return the configured model with its initial weights, which depend only on the seed.

    Raises:
        ConfigError: it cannot be created, or none of its parameters is trained.
    """
    torch.manual_seed(config.seed)
    model = instantiated(config.model, num_classes=len(config.classes))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {config.model} is {type(model).__name__}, not a torch.nn.Module")
    if config.init == "kaiming":
        initialise_kaiming(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model: none of its parameters requires a gradient, so nothing can be trained")
    return model


def initialise_kaiming(model: nn.Module) -> None:
    """Draw weights of linear and convolution layers as in He et al. 2015 (arXiv:1502.01852); biases are 0.

    Layers in a module whose attribute `pretrained` is true keep their weights.
    """
    for child in model.children():
        if not getattr(child, "pretrained", False):
            initialise_kaiming(child)
    if isinstance(model, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(model.weight, nonlinearity="relu")
        if model.bias is not None:
            nn.init.zeros_(model.bias)


def batch_norms(model: nn.Module) -> list[str]:
    """Return the names of modules whose result depends on the size of the microbatch."""
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules() if isinstance(module, kind)]
