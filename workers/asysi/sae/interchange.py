"""Layouts of SAEs in other libraries: SAELens, dictionary_learning and sparsify.

Every layout is converted by way of SAELens' configuration and tensors, which are also what
`SparseAutoencoder.exported` returns. Files are untrusted: tensors are loaded without executing code.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asysi.contract.errors import ConfigError
from asysi.files import write_atomic, write_atomically
from asysi.sae.export import CONFIG_FILE, SAELENS_VERSION, WEIGHTS_FILE, export, load
from asysi.sae.variants import loadable
from asysi.sae.variants.base import SparseAutoencoder

_ROWS = 256
TOLERANCE = 1e-5
"""Largest difference between an SAE and its conversion, relative to the largest latent or element."""

Config = dict[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class SaeLayout:
    """How a library stores an SAE."""

    files: tuple[str, str]
    """Configuration and weights in the folder of an SAE."""
    read: Callable[[Path], tuple[SparseAutoencoder, Config]]
    """Returns the SAE and its metadata as SAELens has it."""
    write: Callable[[Path, SparseAutoencoder, Config], None]


def layout_of(folder: Path) -> str:
    """Return the name of the layout of the SAE in a folder.

    Raises:
        ConfigError: the folder holds none.
    """
    for name, layout in LAYOUTS.items():
        if all((folder / file).is_file() for file in layout.files):
            return name
    known = "; ".join(f"{name}: {' and '.join(layout.files)}" for name, layout in LAYOUTS.items())
    raise ConfigError(f"{folder} holds no SAE in a known layout ({known})")


def read_sae(folder: Path) -> tuple[SparseAutoencoder, Config]:
    """Return the SAE in a folder in any of the layouts, and its metadata.

    Raises:
        ConfigError: there is none, or it cannot be represented.
    """
    layout = layout_of(folder)
    try:
        return LAYOUTS[layout].read(folder)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise ConfigError(f"{folder} does not hold an SAE in the layout of {layout} ({error})") from error


def convert(source: Path, destination: Path, to: str) -> float:
    """Write the SAE of a folder to another one in the layout `to`; return the largest difference.

    The result is read again, and its latents and reconstructions of random rows are compared.

    Raises:
        ConfigError: the SAE cannot be read or has no such layout, or the destination holds one.
    """
    sae, metadata = read_sae(source)
    if to not in LAYOUTS:
        raise ConfigError(f"the layout {to} is unknown: use {', '.join(LAYOUTS)}")
    # Layouts share names of files.
    names = {name for layout in LAYOUTS.values() for name in layout.files}
    if held := sorted(name for name in names if (destination / name).exists()):
        raise ConfigError(f"{destination} already holds {' and '.join(held)} of an SAE: name an empty folder")
    LAYOUTS[to].write(destination, sae, metadata)
    return _difference(sae, read_sae(destination)[0])


def _difference(one: SparseAutoencoder, other: SparseAutoencoder) -> float:
    """Return how far latents and reconstructions differ on rows that fire the latents, in float64."""
    one, other = one.to(torch.float64), other.to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(_ROWS, one.latents, generator=generator, dtype=torch.float64)
    strength *= torch.rand(_ROWS, one.latents, generator=generator) < 32 / one.latents
    rows = one.decode(3 * strength)
    pairs = ((one.encode(rows), other.encode(rows)), (one.forward(rows), other.forward(rows)))
    return max(float((mine - theirs).abs().max() / mine.abs().max().clamp_min(1)) for mine, theirs in pairs)


# SAELens


def _read_saelens(folder: Path) -> tuple[SparseAutoencoder, Config]:
    return load(folder), json.loads((folder / CONFIG_FILE).read_text()).get("metadata") or {}


def _write_saelens(folder: Path, sae: SparseAutoencoder, metadata: Config) -> None:
    needed = {
        "sae_lens_version": SAELENS_VERSION, "sae_lens_training_version": None, "model_name": None,
        "hook_name": None, "hook_head_index": None, "context_size": None, "prepend_bos": None,
        "seqpos_slice": [None], "dataset_path": None,
    }  # fmt: skip
    export(folder, sae, {**needed, **metadata})


# sparsify

_SPARSIFY_FILES = ("cfg.json", "sae.safetensors")


def _read_sparsify(folder: Path) -> tuple[SparseAutoencoder, Config]:
    config = json.loads((folder / _SPARSIFY_FILES[0]).read_text())
    for name, plain in (("activation", "topk"), ("transcode", False), ("skip_connection", False)):
        if config.get(name, plain) != plain:
            raise ValueError(f"{name} is {config[name]!r}; only {plain!r} can be represented")
    own = load_file(folder / _SPARSIFY_FILES[1])
    tensors = {
        "W_enc": own["encoder.weight"].T, "b_enc": own["encoder.bias"], "W_dec": own["W_dec"],
        "b_dec": own["b_dec"],
    }  # fmt: skip
    return _made("topk", tensors, k=config["k"]), {}


def _write_sparsify(folder: Path, sae: SparseAutoencoder, metadata: Config) -> None:
    config, tensors = sae.exported()
    if config["architecture"] != "topk":
        raise ConfigError(f"sparsify knows only TopK autoencoders, and this one is {config['architecture']}")
    own = {
        "encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"], "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }  # fmt: skip
    about = {
        "activation": "topk", "expansion_factor": max(1, sae.latents // sae.d_in), "normalize_decoder": True,
        "num_latents": sae.latents, "k": config["k"], "multi_topk": False, "skip_connection": False,
        "transcode": False, "d_in": sae.d_in,
    }  # fmt: skip
    plain = {name: tensor.contiguous() for name, tensor in own.items()}
    write_atomically(folder / _SPARSIFY_FILES[1], lambda temporary: save_file(plain, temporary))
    write_atomic(folder / _SPARSIFY_FILES[0], json.dumps(about, indent=1))


# dictionary_learning

_DICTIONARY_FILES = ("config.json", "ae.pt")
_CLASSES = {
    "topk": "AutoEncoderTopK", "standard": "AutoEncoder", "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
}  # fmt: skip
"""Class by SAELens' architecture."""


def _read_dictionary(folder: Path) -> tuple[SparseAutoencoder, Config]:
    about = json.loads((folder / _DICTIONARY_FILES[0]).read_text())["trainer"]
    own = torch.load(folder / _DICTIONARY_FILES[1], map_location="cpu", weights_only=True)
    metadata = {"model_name": about.get("lm_name"), "hook_name": about.get("submodule_name")}
    kind = about["dict_class"]
    if kind not in _FROM_DICTIONARY:
        raise ValueError(f"{kind} is not supported; only {', '.join(_FROM_DICTIONARY)} are")
    return _FROM_DICTIONARY[kind](own), metadata


def _from_linear(own: Mapping[str, Tensor], bias: Tensor) -> Tensors:
    return {
        "W_enc": own["encoder.weight"].T, "b_enc": own["encoder.bias"], "W_dec": own["decoder.weight"].T,
        "b_dec": bias,
    }  # fmt: skip


def _from_top_k(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    return _made("topk", _from_linear(own, own["b_dec"]), k=int(own["k"]))


def _from_batch_top_k(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    tensors = _from_linear(own, own["b_dec"])
    return _made("jumprelu", {**tensors, "threshold": own["threshold"].expand(len(tensors["b_enc"]))})


def _from_matryoshka(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    tensors = {name: own[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return _made("jumprelu", {**tensors, "threshold": own["threshold"].expand(len(own["b_enc"]))})


def _from_standard(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    return _made("standard", _from_linear(own, own["bias"]))


def _from_standard_new(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    return _made("standard", _from_linear(own, own["decoder.bias"]), centred=False)


def _from_gated(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    tensors = {
        "W_enc": own["encoder.weight"].T, "b_gate": own["gate_bias"], "b_mag": own["mag_bias"],
        "r_mag": own["r_mag"], "W_dec": own["decoder.weight"].T, "b_dec": own["decoder_bias"],
    }  # fmt: skip
    return _made("gated", _unit(tensors))


def _from_jumprelu(own: Mapping[str, Tensor]) -> SparseAutoencoder:
    return _made("jumprelu", _unit(dict(own)), centred=False)


_FROM_DICTIONARY: dict[str, Callable[[Mapping[str, Tensor]], SparseAutoencoder]] = {
    "AutoEncoderTopK": _from_top_k,
    "BatchTopKSAE": _from_batch_top_k,
    "MatryoshkaBatchTopKSAE": _from_matryoshka,
    "AutoEncoder": _from_standard,
    "AutoEncoderNew": _from_standard_new,
    "GatedAutoEncoder": _from_gated,
    "JumpReluAutoEncoder": _from_jumprelu,
}


def _write_dictionary(folder: Path, sae: SparseAutoencoder, metadata: Config) -> None:
    config, tensors = sae.exported()
    kind = config["architecture"]
    if kind not in _CLASSES:
        raise ConfigError(f"dictionary_learning has no class for the architecture {kind}")
    about = {
        "trainer_class": "TopKTrainer" if kind == "topk" else "StandardTrainer", "dict_class": _CLASSES[kind],
        "activation_dim": sae.d_in, "dict_size": sae.latents, "device": "cpu", "layer": 0,
        "lm_name": metadata.get("model_name"), "submodule_name": metadata.get("hook_name"),
        **({"k": config["k"]} if kind == "topk" else {}),
    }  # fmt: skip
    own = {name: tensor.contiguous() for name, tensor in _to_dictionary(config, tensors).items()}
    write_atomically(folder / _DICTIONARY_FILES[1], lambda temporary: torch.save(own, temporary))
    write_atomic(folder / _DICTIONARY_FILES[0], json.dumps({"trainer": about, "buffer": {}}, indent=1))


def _to_dictionary(config: Config, tensors: Tensors) -> Tensors:
    """Return the tensors of dictionary_learning's class for an architecture."""
    kind = config["architecture"]
    if kind == "jumprelu":
        own = _unit(tensors)
        return {**own, "b_enc": own["b_enc"] - own["b_dec"] @ own["W_enc"]}
    if kind == "gated":
        own = _unit(tensors)
        return {
            "encoder.weight": own["W_enc"].T, "gate_bias": own["b_gate"], "mag_bias": own["b_mag"],
            "r_mag": own["r_mag"], "decoder.weight": own["W_dec"].T, "decoder_bias": own["b_dec"],
        }  # fmt: skip
    linear = {
        "encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T,
    }  # fmt: skip
    if kind == "standard":
        return {**linear, "bias": tensors["b_dec"]}
    scalars = {"k": torch.tensor(config["k"], dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    return {**linear, "b_dec": tensors["b_dec"], **scalars}


def _made(
    architecture: str, tensors: Mapping[str, Tensor], *, centred: bool = True, **own: Any
) -> SparseAutoencoder:
    """Return an SAE of tensors as SAELens names them.

    Args:
        architecture: SAELens' name.
        tensors: its tensors.
        centred: whether the encoder reads x − b_dec, instead of x.
        own: further entries of the configuration.
    """
    d_in, latents = tensors["W_enc"].shape
    config = {"d_in": d_in, "d_sae": latents, "apply_b_dec_to_input": centred, **own}
    return loadable()[architecture].from_export(config, tensors)


def _unit(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return equivalent tensors with decoder rows of norm 1, for activations that commute with a factor.

    dictionary_learning's gated and JumpReLU classes multiply latents by the norms.
    """
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
    scaled = {
        name: tensors[name] * norms
        for name in ("W_enc", "b_enc", "b_gate", "b_mag", "threshold")
        if name in tensors
    }
    return {**tensors, **scaled, "W_dec": tensors["W_dec"] / norms.clamp_min(1e-12)[:, None]}


LAYOUTS = {
    "saelens": SaeLayout((CONFIG_FILE, WEIGHTS_FILE), _read_saelens, _write_saelens),
    "sparsify": SaeLayout(_SPARSIFY_FILES, _read_sparsify, _write_sparsify),
    "dictionary_learning": SaeLayout(_DICTIONARY_FILES, _read_dictionary, _write_dictionary),
}
"""Layouts by the name of their library."""
