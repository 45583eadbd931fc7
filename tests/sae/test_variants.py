"""Every SAE variant that can be trained keeps the claims that its users rely on."""

import pytest

from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.contract.variants import VARIANTS
from asysi.sae.variants import loadable, variant

SMALL = {
    "latents": 64, "k": 4, "batch": 32, "buffer": {"batches": 4, "sequences": 20}, "auxk": {"deadAfter": 200},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_conforms(check, name, tmp_path):
    """Each check of conftest.py holds for each variant of the table."""
    check(SaeTrain.model_validate({**SMALL, "variant": name}), tmp_path)


def test_the_table_names_variants_that_the_schema_knows():
    """Each name may stand in a spec, each class is there, and no two load the same architecture."""
    for name in VARIANTS:
        assert SaeTrain.model_validate({"variant": name}).variant == name
        assert variant(name).from_spec(SaeTrain.model_validate({"variant": name}), 8, 8).d_in == 8
    architectures = [variant(name).architecture for name in VARIANTS if variant(name).architecture]
    assert sorted(loadable()) == sorted(architectures)


def test_an_unknown_variant_is_named():
    """A variant that is not in the table is an error that says which ones are."""
    with pytest.raises(ConfigError, match="gated is not available: use topk"):
        variant("gated")
