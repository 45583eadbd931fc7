"""`asysi sae convert`: SAEs from and for other libraries."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


class _Library(StrEnum):
    SAELENS = "saelens"
    SPARSIFY = "sparsify"
    DICTIONARY_LEARNING = "dictionary_learning"


@app.callback()
def _group() -> None:
    """Convert sparse autoencoders."""


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of one SAE, as SAELens (cfg.json, sae_weights.safetensors), sparsify (cfg.json, "
            "sae.safetensors) or dictionary_learning (config.json, ae.pt) writes it.",
            metavar="SOURCE",
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="Folder of the result.", metavar="DESTINATION")],
    to: Annotated[_Library, typer.Option(help="Library that is to load it.")] = _Library.SAELENS,
) -> None:
    """Convert an SAE to the layout of another library.

    The result is read again: latents and reconstructions of random rows must agree to 1e-5, otherwise the
    exit code is 1. BatchTopK and Matryoshka autoencoders of dictionary_learning become JumpReLU with their
    threshold. sparsify can only hold TopK autoencoders.
    """
    from asysi.sae.interchange import TOLERANCE, convert, layout_of  # noqa: PLC0415 - torch is slow to import

    found = layout_of(source)
    difference = convert(source, destination, to)
    typer.echo(f"{source} ({found}) -> {destination} ({to}): largest difference {difference:.1e}")
    if not difference <= TOLERANCE:
        typer.echo(f"the result differs by more than {TOLERANCE:g}: do not use it", err=True)
        raise typer.Exit(1)
