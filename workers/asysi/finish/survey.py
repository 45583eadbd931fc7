"""Statistics of the activations of one hook point, independent of any autoencoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asysi.finish import outliers
from asysi.finish.outliers import Outlier
from asysi.finish.reread_tokens import PointRows, RereadTokens

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class VarianceByPlace:
    """How the variance is distributed over the r rows of one hook point."""

    outlier: Outlier | None
    """The group that holds most of the variance; None if there is no variance or no row."""
    members: Mask
    """[r] mask of the rows of that group."""
    not_finite: int
    """Rows that are not finite and were excluded."""


def find_outlier_rows(rows: PointRows, sheet: RereadTokens) -> VarianceByPlace:
    """Analyse the activations of a hook point.

    Outliers are searched among the rows used for metrics: the content tokens of held-out documents, or of
    all documents if none is held out.
    """
    data, held = sheet.content[rows.token], sheet.held_tokens[rows.token]
    usable = data & held if (data & held).any() else data
    token = rows.token[usable]
    found = None
    if len(token):
        found = outliers.find(rows.values[usable], sheet.position[token], sheet.tokens[token])
    members = np.zeros(len(rows.values), np.bool_)
    if found is not None:
        members[np.flatnonzero(usable)[found.members]] = True
    return VarianceByPlace(None if found is None else found.outlier, members, rows.not_finite)
