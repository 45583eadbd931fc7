"""Saves and loads SAEs in the SAELens format: a folder with `cfg.json` and `sae_weights.safetensors`."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asysi.contract.errors import ConfigError
from asysi.contract.spec import ScanExperiment
from asysi.files import write_atomic, write_atomically
from asysi.sae.variants import loadable
from asysi.sae.variants.base import SparseAutoencoder

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SAELENS_VERSION = "6.54.12"
"""SAELens version of this layout; `benchmarks/sae_quality/compatibility.py` checks compatibility."""


def folder_of(parent: Path, point: str) -> Path:
    """Return the folder of a hook point's SAE in `parent`; characters that could escape it are quoted."""
    return parent / quote(point, safe="").replace("..", "%2E%2E")


def export(folder: Path, sae: SparseAutoencoder, metadata: dict[str, Any]) -> None:
    """Write a frozen SAE for plain activations; the configuration is written last.

    Args:
        folder: destination; created if missing, existing files are replaced atomically.
        sae: result of a variant's `frozen`.
        metadata: stored unchanged in the configuration.
    """
    own, tensors = sae.exported()
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    config = {
        "architecture": own["architecture"],
        "d_in": sae.d_in,
        "d_sae": sae.latents,
        **own,
        **{key: value for key, value in _common(sae).items() if key not in own},
        "metadata": metadata,
    }
    text = json.dumps(config, indent=1)
    write_atomically(folder / WEIGHTS_FILE, lambda temporary: save_file(plain, temporary))
    write_atomic(folder / CONFIG_FILE, text)


def _common(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the entries shared by most architectures."""
    return {
        "dtype": str(sae.parameters.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }


def load(folder: Path) -> SparseAutoencoder:
    """Load the SAE in `folder`.

    Raises:
        ConfigError: the folder does not contain an SAE of a known architecture in the SAELens layout.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        known = loadable()
        if config["architecture"] not in known:
            raise ConfigError(
                f"{folder} holds an SAE of architecture {config['architecture']}; only "
                f"{', '.join(sorted(known))} can be loaded"
            )
        return known[config["architecture"]].from_export(config, load_file(folder / WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder} does not hold an SAE in SAELens' layout ({error})") from error


def metadata_of(
    experiment: ScanExperiment,
    model: dict[str, Any],
    point: str,
    alias: str | None,
    numbers: dict[str, Any],
    *,
    began_with_bos: bool | None = None,
) -> dict[str, Any]:
    """Return the metadata that SAELens expects, with our own metrics under `asysi`.

    Args:
        experiment: the experiment, with the tokenisation settings.
        model: the model resolved by prepare: uri, revision, class_name; may be empty.
        point: path of the hook point.
        alias: its TransformerLens name.
        numbers: metrics of the training.
        began_with_bos: whether every sequence began with the tokenizer's BOS or CLS token; None if only some
            did, or if it is unknown.
    """
    spec = experiment.spec
    data = spec.data
    tokens = data.tokens if data else None
    name = str(model.get("uri") or spec.model.uri).removeprefix("hf://")
    revision = model.get("revision") or spec.model.revision
    return {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,
        "model_name": name,
        "model_class_name": model.get("class_name") or "AutoModel",
        "model_from_pretrained_kwargs": {"revision": revision} if revision else {},
        "hook_name": point,
        "hook_head_index": None,
        "context_size": tokens.context_length if tokens else None,
        "prepend_bos": began_with_bos,
        "seqpos_slice": [None],
        "dataset_path": data.uri if data else None,
        "exclude_special_tokens": "special" in tokens.exclude_tokens if tokens else False,
        "sequence_separator_token": tokens.separator_token if tokens else None,
        "disable_concat_sequences": tokens.packing != "concat" if tokens else True,
        "asysi": {"experiment": experiment.metadata.name, "transformer_lens_hook": alias, **numbers},
    }
