"""GGUF files: quantised weights, configuration and tokenizer in one.

The weights are dequantised when they are loaded, so that the modules are ordinary ones.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.contract.errors import ConfigError

if TYPE_CHECKING:
    import torch

_SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file, by its ending."""
    return path.suffix.lower() == _SUFFIX


def storage_of(file: Path) -> str:
    """Return the types of a file's tensors by their share of the parameters, like `Q4_1 79%, Q8_0 21%`.

    Types with less than half a per cent are left out.

    Raises:
        ConfigError: the file is not a whole GGUF file, or the package gguf is missing.
    """
    elements: Counter[str] = Counter()
    for name, count in _tensor_types(file):
        elements[name] += count
    total = elements.total()
    shares = [(name, count / total) for name, count in elements.most_common() if count / total >= 0.005]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


@cache
def _tensor_types(file: Path) -> tuple[tuple[str, int], ...]:
    try:
        from gguf import GGUFReader  # noqa: PLC0415 - slow to import, and few models need it
    except ImportError as error:
        raise ConfigError(
            f"spec.model.uri: {file} needs the packages gguf and accelerate: pip install 'asysi[workers]'"
        ) from error
    with _readable(file):
        tensors = GGUFReader(file).tensors
        return tuple((tensor.tensor_type.name, int(tensor.n_elements)) for tensor in tensors)


def read_config(file: Path) -> tuple[Any, Any]:
    """Return the transformers configuration of a file, and the class that its weights belong to: with the
    head where transformers has a causal language model of this type.

    Raises:
        ConfigError: the file cannot be read, or transformers does not know its architecture.
    """
    import transformers  # noqa: PLC0415 - heavy

    with _readable(file):
        config = transformers.AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return config, causal.get(type(config), transformers.AutoModel)


def load_weights(
    file: Path, model_class: Any, dtype: "torch.dtype"
) -> tuple["torch.nn.Module", Collection[str]]:
    """Return the model with its weights, dequantised to `dtype`, and the parameters that the file lacks.

    Raises:
        ConfigError: the file cannot be read.
    """
    options: dict[str, Any] = {"gguf_file": file.name, "dtype": dtype, "output_loading_info": True}
    import transformers  # noqa: PLC0415 - heavy

    if packed := getattr(transformers, "GgufConfig", None):  # packed weights have modules of their own
        options["quantization_config"] = packed(dequantize=True)
    with _readable(file):
        module, info = model_class.from_pretrained(str(file.parent), **options)
    return module, info["missing_keys"]


def load_tokenizer(file: Path) -> Any:
    """Return the tokenizer that a file holds.

    Raises:
        ConfigError: it holds none that transformers can make.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

    with _readable(file):
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what goes wrong inside, where a damaged file can raise anything, into a sentence."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
            yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"spec.model.uri: {file} cannot be used as a GGUF model ({type(error).__name__}: {error}): fetch "
            "it again if it is cut off; an architecture that transformers cannot read from GGUF needs its "
            "safetensors"
        ) from error
