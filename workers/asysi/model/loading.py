"""Resolves and builds models from safetensors or GGUF files; remote code is never executed."""

import hashlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asysi.contract.errors import ConfigError
from asysi.contract.runtime import Env
from asysi.contract.spec import Model
from asysi.model import gguf

if TYPE_CHECKING:
    import torch

log = logging.getLogger("asysi")

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_BLOCK = 1 << 20
_OFFLINE = "HF_HUB_OFFLINE"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The model resolved by prepare: the content of MODEL_FILE."""

    uri: str
    """URI as in the spec."""
    path: str | None
    """Folder with config.json and the safetensors, or a GGUF file; None for a python:// factory."""
    sha256: str | None
    """SHA-256 of the weights, as defined by the spec's `sha256`."""
    revision: str | None
    """Commit of a hf:// model."""
    class_name: str | None
    """Class name of the model."""
    tokenizer: str | None
    """Folder of the tokenizer, or a GGUF file that contains it; None if the factory provides it."""
    stored: str | None = None
    """Tensor types of a GGUF file, such as `Q4_1 79%, Q8_0 21%`; None for other models."""

    @property
    def gguf(self) -> Path | None:
        """The GGUF file; None for other models."""
        return Path(self.path) if self.path and gguf.is_gguf(Path(self.path)) else None

    def to_json(self) -> str:
        """Return the content of MODEL_FILE."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A runnable model."""

    module: "torch.nn.Module"
    tokenizer: Any
    """A transformers tokenizer."""
    model_type: str | None
    """`config.model_type`; None without a configuration."""
    warning: str | None = None
    """What the user should know of how it was built."""


def read_resolved(file: Path) -> ResolvedModel:
    """Return the model resolved by prepare.

    Raises:
        ConfigError: the file is missing or invalid.
    """
    try:
        return ResolvedModel(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the resolved model in {file} cannot be read ({error}): prepare writes it first"
        ) from error


def resolve_model(model: Model, workspace: Path | None = None) -> ResolvedModel:
    """Find the model's files, download them if needed, and verify them.

    Args:
        model: the spec's model.
        workspace: download folder for a hf:// model; None uses the default cache of the hub.

    Raises:
        ConfigError: the model does not exist, has no safetensors or only a pickle, its GGUF file is damaged,
            or its hash differs from the spec.
    """
    scheme, _, rest = model.uri.partition("://")
    if scheme == "python":
        return ResolvedModel(model.uri, None, None, None, rest, _tokenizer_folder(model, None, workspace))
    if scheme == "file":
        folder, revision = Path(rest).expanduser(), None
    elif scheme == "hf":
        folder, revision = _fetch(rest, model.revision, workspace)
    else:
        raise ConfigError(f"spec.model.uri: {model.uri!r} must begin with hf://, file:// or python://")
    weights = weight_files(folder, model.uri)
    found = hash_files(weights)
    if model.sha256 is not None and found != model.sha256:
        names = ", ".join(file.name for file in weights)
        raise ConfigError(
            f"spec.model.sha256: the weights in {folder} ({names}) have {found}, the spec says "
            f"{model.sha256}: "
            "get the right files, or correct the hash"
        )
    stored = gguf.storage_of(folder) if gguf.is_gguf(folder) else None
    class_name = None if stored else _class_name(folder)
    tokenizer = _tokenizer_folder(model, folder, workspace)
    return ResolvedModel(model.uri, str(folder), found, revision, class_name, tokenizer, stored)


def weight_files(folder: Path, uri: str) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder, by name, or the GGUF file that `folder` is.

    Raises:
        ConfigError: the folder is missing, or has no config.json or no safetensors.
    """
    if gguf.is_gguf(folder) and folder.is_file():
        return [folder]
    if folder.is_file():
        raise ConfigError(
            f"spec.model.uri: {folder} is a single file that does not end with .gguf: name a GGUF file, or "
            "the folder with config.json and the safetensors"
        )
    if not folder.is_dir():
        raise ConfigError(f"spec.model.uri: {uri!r} resolves to {folder}, which does not exist")
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if files and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"spec.model.uri: {folder} holds GGUF files and no safetensors: name one file, like "
            f"file://{folder / files[0]}"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"spec.model.uri: {folder} has no config.json, so it is not a Hugging Face model folder"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        return weights
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"spec.model.uri: pickle checkpoint refused: {folder} holds {', '.join(pickles)} and no "
            "safetensors. "
            "A pickle can run any code when it is loaded; convert to safetensors where you trust it, and "
            "use that folder"
        )
    raise ConfigError(f"spec.model.uri: {folder} holds no *.safetensors: the weights are missing")


def hash_files(files: list[Path]) -> str:
    """Return the SHA-256 of one file, or the SHA-256 of the concatenated hexadecimal digests of several."""
    digests = [_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def load_model(resolved: ResolvedModel, dtype: str, device: str = "cpu") -> LoadedModel:
    """Build the model with its weights, in evaluation mode, and its tokenizer.

    Args:
        resolved: the resolved model.
        dtype: name of the torch dtype of the loaded weights.
        device: where the model will run. A python:// factory that takes `device` builds it there; every other
            model is built on the CPU.

    Raises:
        ConfigError: the factory or the folder does not provide a model, or there is no tokenizer.
    """
    import torch  # noqa: PLC0415 - resolving needs none

    if resolved.path is None:
        from asysi.model.factory import make  # noqa: PLC0415 - imports torch

        factory = load_callable(resolved.uri.partition("://")[2], "spec.model.uri")
        return _finished(resolved, *make(factory, resolved.uri, device), dtype=getattr(torch, dtype))
    config, model_class = _architecture(resolved)
    with _quiet():
        if resolved.gguf:
            module, missing = gguf.load_weights(resolved.gguf, model_class, getattr(torch, dtype))
            refuse_missing(module, missing, str(resolved.gguf))
            _spare_the_cache(module)
            return LoadedModel(module.eval(), load_tokenizer(resolved), config.model_type)
        try:
            module, info = model_class.from_pretrained(
                resolved.path,
                use_safetensors=True,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"spec.model.uri: the model in {resolved.path} cannot be loaded: {error}"
            ) from error
    refuse_missing(module, info["missing_keys"], resolved.path)
    _spare_the_cache(module)
    return LoadedModel(module.eval(), load_tokenizer(resolved), config.model_type)


def refuse_missing(module: "torch.nn.Module", missing: Collection[str], source: str) -> None:
    """Reject a model with missing parameters, which transformers would initialise randomly.

    A missing head or pooler is only logged: it does not affect preceding modules.

    Args:
        module: the model.
        missing: names of the missing parameters.
        source: the files, for error messages.

    Raises:
        ConfigError: a parameter of the base model is missing.
    """
    prefix = getattr(module, "base_model_prefix", "")
    inside = f"{prefix}." if prefix and hasattr(module, prefix) else ""
    wrong = sorted(name for name in missing if name.startswith(inside) and "pooler" not in name.split("."))
    if wrong:
        raise ConfigError(
            f"spec.model.uri: {source} lacks {len(wrong)} parameters of {type(module).__name__}, which would "
            f"be random numbers: {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}"
        )
    if missing:
        log.warning("%s lacks %s: they are initialised randomly", source, ", ".join(sorted(missing)))


def build_structure(resolved: ResolvedModel, dtype: str) -> LoadedModel:
    """Return the model with its tokenizer but with its weights on the meta device.

    Buffers that the model computes itself have values. A python:// factory is also called on the meta device;
    if it needs values, its model has weights, and a warning is logged.

    Raises:
        ConfigError: the folder's configuration cannot be used, the factory does not return a model, or there
            is no tokenizer.
    """
    import torch  # noqa: PLC0415

    from asysi.model.hollow import MetaInitMode  # noqa: PLC0415 - imports torch

    if resolved.path is None:
        return _factory_structure(resolved, getattr(torch, dtype))
    config, model_class = _architecture(resolved)
    with _quiet(), MetaInitMode():
        build = model_class.from_config if model_class.__name__ == "AutoModel" else model_class._from_config
        module: torch.nn.Module = build(config, dtype=getattr(torch, dtype))
    _spare_the_cache(module)
    return LoadedModel(module.eval(), load_tokenizer(resolved), config.model_type)


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """Return the tokenizer.

    Raises:
        ConfigError: there is none.
    """
    if resolved.tokenizer is None:
        raise ConfigError("spec.model.tokenizer: the factory returns no tokenizer, so name its folder here")
    with _quiet():
        if gguf.is_gguf(Path(resolved.tokenizer)):
            return gguf.load_tokenizer(Path(resolved.tokenizer))
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

        try:
            return AutoTokenizer.from_pretrained(resolved.tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"spec.model.tokenizer: {resolved.tokenizer} holds no tokenizer: {error}"
            ) from error


def _architecture(resolved: ResolvedModel) -> tuple[Any, Any]:
    """Return configuration and class: the first architecture known to transformers, otherwise AutoModel."""
    with _quiet():
        if resolved.gguf:
            return gguf.read_config(resolved.gguf)
        import transformers  # noqa: PLC0415 - heavy

        try:
            config = transformers.AutoConfig.from_pretrained(resolved.path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"spec.model.uri: the configuration in {resolved.path} cannot be used: {error}. Code that "
                "comes with a "
                "model is never run; use python:// for a model that transformers does not know"
            ) from error
        known = (getattr(transformers, name, None) for name in config.architectures or [])
        return config, next((cls for cls in known if cls is not None), transformers.AutoModel)


def _factory_structure(resolved: ResolvedModel, dtype: "torch.dtype") -> LoadedModel:
    from asysi.model.factory import make_structure  # noqa: PLC0415 - imports torch

    factory = load_callable(resolved.uri.partition("://")[2], "spec.model.uri")
    made, why = make_structure(factory, resolved.uri)
    found = _finished(resolved, *made, dtype=dtype)
    if why is None:
        return found
    return replace(
        found,
        warning=f"spec.model.uri: {resolved.uri} cannot be called on the meta device ({why}), so the check "
        "builds the model with all its weights, for its structure alone. A factory with a parameter `device` "
        "that makes every tensor there is built once, where it runs",
    )


def _finished(
    resolved: ResolvedModel, module: "torch.nn.Module", tokenizer: Any, *, dtype: "torch.dtype"
) -> LoadedModel:
    """Return a factory's model in `dtype`, with the spec's tokenizer or else the factory's."""
    if resolved.tokenizer is not None:
        tokenizer = load_tokenizer(resolved)
    if tokenizer is None:
        raise ConfigError(
            f"spec.model.tokenizer: {resolved.uri} returns no tokenizer with the module: return both, or "
            "name one here"
        )
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    return LoadedModel(module.to(dtype).eval(), tokenizer, model_type)


def load_callable(reference: str, where: str) -> Any:
    """Import the callable `package.module:name`, from installed packages or the folders in ASYSI_MODULES.

    Raises:
        ConfigError: it does not exist or is not callable.
    """
    module_name, colon, name = reference.partition(":")
    if not colon:
        raise ConfigError(f"{where}: python://{reference} needs the form python://package.module:factory")
    folders = [folder for folder in os.environ.get(Env.MODULES, "").split(os.pathsep) if folder]
    sys.path += [folder for folder in folders if folder not in sys.path]  # after installed packages
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing a module may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        beside = f"; looked beside the spec too, in {', '.join(folders)}" if folders else ""
        raise ConfigError(
            f"{where}: python://{reference} cannot be imported: {kind}{error}"
            + (beside if isinstance(error, ModuleNotFoundError) else "")
        ) from error
    if not callable(found):
        raise ConfigError(f"{where}: python://{reference} is {type(found).__name__}, which cannot be called")
    return found


def _fetch(name: str, revision: str | None, workspace: Path | None) -> tuple[Path, str | None]:
    """Return the folder of a hub model and its commit; the files are downloaded once."""
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - an extra
        from huggingface_hub.errors import (  # noqa: PLC0415
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ConfigError(
            f"spec.model.uri: hf://{name} needs the package huggingface-hub: pip install 'asysi[hub]', or "
            "use file://"
        ) from error
    cache = workspace / "hub" if workspace else None
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, cache_dir=cache))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"spec.model.uri: hf://{name} is not on this machine and the hub cannot be reached ({error}): "
            "fetch it where there is a network, and use file://"
        ) from error
    except GatedRepoError as error:
        raise ConfigError(
            f"spec.model.uri: hf://{name} is gated: accept its terms on the hub, and set HF_TOKEN, on a "
            "cluster by spec.model.secretRef"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"spec.model.uri: the hub has no {name} at {revision or 'its main branch'}: {error}"
        ) from error
    return folder, folder.name


def _tokenizer_folder(model: Model, own: Path | None, workspace: Path | None) -> str | None:
    if model.tokenizer is None:
        return str(own) if own else None
    if model.tokenizer.startswith("hf://"):
        return str(_fetch(model.tokenizer.removeprefix("hf://"), None, workspace)[0])
    folder = Path(model.tokenizer.removeprefix("file://")).expanduser()
    if not folder.is_dir() and not (gguf.is_gguf(folder) and folder.is_file()):
        raise ConfigError(f"spec.model.tokenizer: {folder} is neither a folder nor a GGUF file")
    return str(folder)


def _class_name(folder: Path) -> str | None:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ConfigError(f"spec.model.uri: {folder / 'config.json'} is not valid JSON: {error}") from error
    return next(iter(config.get("architectures") or []), None)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _spare_the_cache(module: "torch.nn.Module") -> None:
    """Disable the key/value cache, which a single forward pass per batch never uses."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers off the network and its progress bars off the terminal."""
    ours = _OFFLINE not in os.environ
    os.environ.setdefault(_OFFLINE, "1")  # read when huggingface_hub is first imported
    from transformers.utils import logging as noise  # noqa: PLC0415 - heavy

    level = noise.get_verbosity()
    noise.set_verbosity(logging.ERROR)
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if ours:
            del os.environ[_OFFLINE]  # do not pass it on to child processes
