"""From an image to the tensors of a sample."""

from asysi.train.processor import ImageProcessor


class DigitProcessor(ImageProcessor):
    """Grey images of 8 × 8 pixels."""

    def __init__(self, size: int = 8) -> None:
        super().__init__(size)
