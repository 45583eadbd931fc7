"""docs/extending.md: settings, a row and a file are all that a new SAE variant takes."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Literal

import pytest
from pydantic import Field

from asysi.contract import variants
from asysi.contract.spec import Part, SaeTrain

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
_SECTION = PAGE.partition("## Add an SAE variant")[2].partition("\n## ")[0]
SETTINGS, ROW, FILE = (dedent(code) for code in re.findall(r"   ```python\n(.*?)   ```", _SECTION, re.DOTALL))


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Return a trainer's entry of the page's variant, which is registered and lies in a file."""
    scope = {"Part": Part, "Annotated": Annotated, "Field": Field, "__name__": __name__}
    exec(SETTINGS, scope)
    train = type(
        "Train",
        (SaeTrain,),
        {
            "__annotations__": {"variant": Literal["saturating"], "saturating": scope["SaturatingSettings"]},
            "saturating": scope["SaturatingSettings"](),
        },
    )
    (tmp_path / "saturating_of_the_page.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    row = eval("{" + ROW + "}")
    assert row == {"saturating": "asysi.sae.variants.saturating:Saturating"}
    monkeypatch.setitem(variants.VARIANTS, "saturating", "saturating_of_the_page:Saturating")
    small = {"latents": 64, "batch": 32, "lr": 5e-3, "buffer": {"batches": 4, "sequences": 20}}
    return train.model_validate({**small, "variant": "saturating", "saturating": {"weight": 0.05}})


def test_the_pages_variant_conforms(check, entry, tmp_path):
    """Each check of conftest.py holds for the page's variant."""
    check(entry, tmp_path)
