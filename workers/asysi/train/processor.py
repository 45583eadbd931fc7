"""Processors: from a raw row to the tensors of a sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from asysi.contract.errors import ConfigError

Augmentation = Callable[[Any], Any]


class Processor(Protocol):
    """Processor that a data set calls for each sample."""

    def preprocess(self, data: dict[str, Any], img_aug: Augmentation | None = None) -> dict[str, Tensor]:
        """Return the tensors of a sample, by name.

        Args:
            data: result of `get_raw_data`.
            img_aug: the augmentation of training samples; None disables it.
        """


class ImageProcessor:
    """Converts images of any size and mode to greyscale, scaled to size × size, with values from -1 to 1.

    Args:
        size: height and width in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def preprocess(self, data: dict[str, Any], img_aug: Augmentation | None = None) -> dict[str, Tensor]:
        """Return `images` [1, size, size], float32, and `labels` [], int64.

        Args:
            data: `image`, a Pillow image, and `label`.
            img_aug: changes a uint8 tensor [1, size, size].
        """
        pixels = torch.from_numpy(np.array(self._fitted(data["image"]))).unsqueeze(0)
        if img_aug is not None:
            pixels = img_aug(pixels)
        return {
            "images": pixels.float() / 127.5 - 1,
            "labels": torch.tensor(data["label"], dtype=torch.int64),
        }

    def read(self, path: Path) -> dict[str, Any]:
        """Return a raw row without a label, read from an image file.

        Raises:
            ConfigError: the file is missing or not an image.
        """
        return {"image": open_image(path), "label": 0}

    def _fitted(self, image: Any) -> Any:
        """Return an image in mode L, size × size."""
        if _deep(image):
            image = image.convert("F").point(lambda value: value * (1 / 257))
        elif image.mode in {"RGBA", "LA", "PA", "P"}:
            image = _on_black(image.convert("RGBA"))
        grey = image.convert("L")
        return (
            grey if grey.size == (self.size, self.size) else grey.resize((self.size, self.size), _bilinear())
        )


class TextProcessor:
    """Converts text to token ids, truncated or padded to a fixed length.

    Args:
        tokenizer: folder of a transformers tokenizer, or `package:NAME` for the folder `model` of a package.
        length: tokens per sample.
    """

    def __init__(self, tokenizer: str, length: int) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, and only text needs it

        self.length = length
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder(tokenizer), local_files_only=True)

    def preprocess(self, data: dict[str, Any], img_aug: Augmentation | None = None) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` [length], and `labels` [], all int64.

        Args:
            data: `text` and `label`.
            img_aug: changes the text.
        """
        text = data["text"] if img_aug is None else img_aug(data["text"])
        coded = self.tokenizer(text, max_length=self.length, truncation=True, padding="max_length")
        return {
            "input_ids": torch.tensor(coded["input_ids"], dtype=torch.int64),
            "attention_mask": torch.tensor(coded["attention_mask"], dtype=torch.int64),
            "labels": torch.tensor(data["label"], dtype=torch.int64),
        }

    def read(self, path: Path) -> dict[str, Any]:
        """Return a raw row without a label, read from a text file.

        Raises:
            ConfigError: the file is missing, empty, or not UTF-8.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: save it as UTF-8") from error
        if not text.strip():
            raise ConfigError(f"{path} is empty: it needs the text to classify")
        return {"text": text, "label": 0}


def open_image(path: Path) -> Any:
    """Return an image file, fully read.

    Raises:
        ConfigError: the file is missing, not an image, or larger than Pillow allows.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - only image projects need Pillow

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise ConfigError(f"{path} is not an image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error


def model_folder(reference: str) -> str:
    """Return the folder of a reference: a path, or `package:NAME` for the folder in a package.

    Raises:
        ConfigError: the package is not installed.
    """
    name = reference.removeprefix("package:")
    if name == reference:
        return reference
    from importlib.util import find_spec  # noqa: PLC0415

    found = find_spec(name)
    if found is None or found.origin is None:
        raise ConfigError(f"the package {name} is not installed: pip install {name.replace('_', '-')}")
    return str(Path(found.origin).parent / "model")


def _on_black(image: Any) -> Any:
    from PIL import Image  # noqa: PLC0415

    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _deep(image: Any) -> bool:
    return str(image.mode).startswith("I")  # 16 or 32 bits per pixel; PNG uses 16


def _bilinear() -> Any:
    from PIL import Image  # noqa: PLC0415

    return Image.Resampling.BILINEAR
