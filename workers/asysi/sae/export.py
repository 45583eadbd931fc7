"""SAEs on disk as SAELens reads them: a folder with `cfg.json` and `sae_weights.safetensors`."""

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
"""The version of SAELens whose layout this is; `benchmarks/sae_quality/compatibility.py` holds us to it."""


def folder_of(parent: Path, point: str) -> Path:
    """Return the folder of a hook point's SAE below `parent`; characters that could leave it are quoted."""
    return parent / quote(point, safe="").replace("..", "%2E%2E")


def export(folder: Path, sae: SparseAutoencoder, metadata: dict[str, Any]) -> None:
    """Write a frozen SAE, the one of plain activations; the configuration comes last.

    Args:
        folder: is made when missing; what stands there is replaced, each file atomically.
        sae: what a variant's `frozen` returned.
        metadata: goes into the configuration as it is.
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
    """Return the entries that most architectures share."""
    return {
        "dtype": str(sae.parameters.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }


def load(folder: Path) -> SparseAutoencoder:
    """Return the SAE that stands in `folder`.

    Raises:
        ConfigError: the folder does not hold an SAE of a known architecture in SAELens' layout.
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
    """Return the metadata that SAELens looks for, and our own numbers under `asysi`.

    Args:
        experiment: says how the text became tokens.
        model: what prepare resolved: uri, revision, class_name; may be empty.
        point: path of the hook point.
        alias: its name in TransformerLens.
        numbers: what training showed.
        began_with_bos: whether every sequence began with the tokenizer's BOS or CLS token; None when only
            some did, or when that is not known.
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
