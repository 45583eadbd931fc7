"""Write scikit-learn's digits as images and three tables; nothing is downloaded."""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))


def main(folder: Path) -> None:
    """Write `data/images/*.png` and `data/{train,val,test}.csv`; the tables last."""
    digits = load_digits()
    images = folder / "data/images"
    images.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(digits.images):
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(images / f"{number:04}.png")
    order = np.random.default_rng(0).permutation(len(digits.target))
    first = 0
    for name, share in reversed(SHARES):
        count = round(share * len(order))
        chosen, first = order[first : first + count], first + count
        temporary = folder / f"data/{name}.tmp"
        with temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "label"])
            for number in sorted(chosen):
                writer.writerow([f"images/{number:04}.png", int(digits.target[number])])
        temporary.replace(folder / f"data/{name}.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
