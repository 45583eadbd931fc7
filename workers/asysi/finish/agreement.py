"""Whether the report reads what the trainer was given: one SAE, the same held-out rows, from both sides."""

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
"""Rows below which nothing is compared."""
KEY = np.dtype([("sample", "<u8"), ("position", "<u8"), ("call", "<u8")])


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out rows as a trainer keeps them, m of them."""

    rows: Floats
    """[m, width], dequantised."""
    sample: NDArray[np.uint64]
    """[m] row of the input."""
    position: NDArray[np.uint64]
    """[m] position in the sequence."""
    call: NDArray[np.uint64]
    """[m] call of the module in the forward."""


def compare(sae: SparseAutoencoder, rows: PointRows, sheet: RereadTokens, held: Held) -> Agreement | None:
    """Return the FVU on the rows that both sides have, None where they share too few or these do not vary.

    Args:
        sae: the exported SAE.
        rows: activations as finish read them again.
        sheet: their tokens, a document a sequence.
        held: rows as the trainer was given them.
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
