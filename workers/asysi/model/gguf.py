"""GGUF files: quantised weights, configuration and tokenizer in one file.

The weights are dequantised on loading, so the modules are ordinary ones.
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
    """Return whether a path has the file extension of a GGUF file."""
    return path.suffix.lower() == _SUFFIX


def storage_of(file: Path) -> str:
    """Return the tensor types of a file with their share of the parameters, such as `Q4_1 79%, Q8_0 21%`.

    Types below 0.5% are omitted.

    Raises:
        ConfigError: the file is not a complete GGUF file, or the package gguf is missing.
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
    """Return the transformers configuration and model class of a file.

    The class includes the head if transformers has a causal language model for this configuration.

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
    """Return the model with its weights dequantised to `dtype`, and the names of missing parameters.

    Raises:
        ConfigError: the file cannot be read.
    """
    options: dict[str, Any] = {"gguf_file": file.name, "dtype": dtype, "output_loading_info": True}
    import transformers  # noqa: PLC0415 - heavy

    if packed := getattr(transformers, "GgufConfig", None):  # packed weights would use special modules
        options["quantization_config"] = packed(dequantize=True)
    with _readable(file):
        module, info = model_class.from_pretrained(str(file.parent), **options)
    return module, info["missing_keys"]


def load_tokenizer(file: Path) -> Any:
    """Return the tokenizer in a GGUF file.

    Raises:
        ConfigError: the file has no tokenizer that transformers supports.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

    with _readable(file):
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Convert any exception, as damaged files can raise arbitrary ones, into a ConfigError."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars that cannot be disabled
            yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"spec.model.uri: {file} cannot be used as a GGUF model ({type(error).__name__}: {error}): fetch "
            "it again if it is cut off; an architecture that transformers cannot read from GGUF needs its "
            "safetensors"
        ) from error
