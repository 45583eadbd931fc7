"""The autoencoders of a trainer: one, or one per combination of `grid`."""

from itertools import product

from asysi.contract.spec import Grid, SaeTrain

MOST_MEMBERS = 64
"""Largest number of autoencoders of a trainer."""


def members(train: SaeTrain) -> list[SaeTrain]:
    """Return the settings of each autoencoder of a trainer, without a grid; at least one.

    With a grid, the names contain the values that it lists.
    """
    grid = train.grid
    given = {"k": grid.k, "latents": grid.latents, "seed": grid.seeds}
    listed = {name: list(dict.fromkeys(values)) for name, values in given.items() if values}
    if not listed:
        return [train]
    return [
        train.model_copy(update={"name": _name(train.name, chosen), "grid": Grid(), **chosen})
        for values in product(*listed.values())
        for chosen in [dict(zip(listed, values, strict=True))]
    ]


def _name(name: str, chosen: dict[str, int]) -> str:
    return "-".join([name, *(f"{key}{value}" for key, value in chosen.items())])
