"""Checks that report and trainer see the same data: the FVU of one SAE on the same held-out rows of both."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asysi.finish import latents
from asysi.finish.latents import Floats
from asysi.finish.reread_tokens import PointRows, RereadTokens
from asysi.finish.verdict import Agreement
from asysi.sae.fvu import fvu
from asysi.sae.variants.base import SparseAutoencoder

ENOUGH = 32
"""Minimum number of shared rows for a comparison."""
KEY = np.dtype([("sample", "<u8"), ("position", "<u8"), ("call", "<u8")])


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """The m held-out rows that a trainer keeps."""

    rows: Floats
    """[m, width], dequantised."""
    sample: NDArray[np.uint64]
    """[m] input row."""
    position: NDArray[np.uint64]
    """[m] position in the sequence."""
    call: NDArray[np.uint64]
    """[m] index of the module call within the forward pass."""


def compare(
    sae: SparseAutoencoder, rows: PointRows, sheet: RereadTokens, held: HeldOutRows
) -> Agreement | None:
    """Return the FVU on the shared rows; None if there are too few of them or they do not vary.

    Args:
        sae: the exported SAE.
        rows: activations recomputed by finish.
        sheet: their tokens, one document per sequence.
        held: rows as the trainer received them.
    """
    ours = np.zeros(len(rows.values), KEY)
    ours["sample"], ours["position"] = sheet.rows[sheet.document][rows.token], sheet.position[rows.token]
    ours["call"] = rows.call
    theirs = np.zeros(len(held.rows), KEY)
    theirs["sample"], theirs["position"], theirs["call"] = held.sample, held.position, held.call
    _, here, there = np.intersect1d(ours, theirs, return_indices=True)
    if len(here) < ENOUGH:
        return None
    report, trainer = (
        fvu(latents.squared_error(sae, side), latents.variance(side), latents.energy(side))
        for side in (rows.values[here], held.rows[there])
    )
    return None if report is None or trainer is None else Agreement(len(here), trainer, report)
