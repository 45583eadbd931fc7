"""SAEs of other libraries are read and written as those libraries compute them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sae.conftest import rows_of, trained
from typer.testing import CliRunner

from asysi.contract.errors import ConfigError
from asysi.contract.spec import SaeTrain
from asysi.contract.variants import VARIANTS
from asysi.sae.commands import app
from asysi.sae.export import export
from asysi.sae.interchange import LAYOUTS, convert, layout_of, read_sae

SMALL = {"latents": 64, "k": 4, "batch": 32, "buffer": {"batches": 4, "sequences": 20}}
X = torch.cat([rows_of(step) for step in range(900, 904)])


def exported(folder, name, norm="unit"):
    sae = trained(SaeTrain.model_validate({**SMALL, "variant": name, "decoder": {"norm": norm}}))
    sae = sae.frozen(0.4, 0.4)
    export(folder, sae, {"model_name": "m", "hook_name": "layer.0"})
    return sae


def sparsify(folder):
    """What sparsify's SparseCoder computes from its files."""
    config, own = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    pre = torch.relu((X - own["b_dec"]) @ own["encoder.weight"].T + own["encoder.bias"])
    top = pre.topk(config["k"])
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return latents, latents @ own["W_dec"] + own["b_dec"]


def dictionary_learning(folder):
    """What the class of dictionary_learning that config.json names computes from ae.pt."""
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    own = torch.load(folder / "ae.pt", weights_only=True)
    if kind == "JumpReluAutoEncoder":
        pre = X @ own["W_enc"] + own["b_enc"]
        latents = torch.relu(pre * (pre > own["threshold"])) * own["W_dec"].norm(dim=1)
        return latents, latents / own["W_dec"].norm(dim=1) @ own["W_dec"] + own["b_dec"]
    norms = own["decoder.weight"].norm(dim=0)
    if kind == "GatedAutoEncoder":
        pre = (X - own["decoder_bias"]) @ own["encoder.weight"].T
        magnitude = torch.relu(own["r_mag"].exp() * pre + own["mag_bias"])
        latents = (pre + own["gate_bias"] > 0) * magnitude * norms
        return latents, latents / norms @ own["decoder.weight"].T + own["decoder_bias"]
    centre = own["bias" if kind == "AutoEncoder" else "b_dec"]
    latents = torch.relu((X - centre) @ own["encoder.weight"].T + own["encoder.bias"])
    if kind == "AutoEncoderTopK":
        top = latents.topk(int(own["k"]))
        latents = torch.zeros_like(latents).scatter(1, top.indices, top.values)
    return latents, latents @ own["decoder.weight"].T + centre


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("library", ["sparsify", "dictionary_learning"])
def test_the_library_computes_what_we_do(library, name, tmp_path):
    """The library computes our latents and reconstructions from the converted files, and back again."""
    sae = exported(tmp_path / "own", name)
    if library == "sparsify" and name != "topk":
        with pytest.raises(ConfigError, match="only TopK"):
            convert(tmp_path / "own", tmp_path / library, library)
        return
    assert convert(tmp_path / "own", tmp_path / library, library) < 1e-5
    latents, rebuilt = {"sparsify": sparsify, "dictionary_learning": dictionary_learning}[library](
        tmp_path / library
    )
    torch.testing.assert_close(latents, sae.encode(X), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(rebuilt, sae.forward(X), rtol=1e-4, atol=2e-5)
    assert convert(tmp_path / library, tmp_path / "back", "saelens") < 1e-5
    again, metadata = read_sae(tmp_path / "back")
    torch.testing.assert_close(again.forward(X), sae.forward(X), rtol=1e-4, atol=2e-5)
    assert metadata["sae_lens_version"]
    assert library == "sparsify" or metadata["hook_name"] == "layer.0"


@pytest.mark.parametrize("name", ["gated", "jumprelu"])
def test_free_decoders_are_scaled(name, tmp_path):
    """Where the library multiplies latents by the norms of the decoder's rows, the rows get norm 1."""
    sae = exported(tmp_path / "own", name, "free")
    convert(tmp_path / "own", tmp_path / "other", "dictionary_learning")
    latents, rebuilt = dictionary_learning(tmp_path / "other")
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    torch.testing.assert_close(latents, sae.encode(X) * norms, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(rebuilt, sae.forward(X), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoderNew"])
def test_other_classes_are_read(kind, tmp_path):
    """Classes that we never write are read: by their threshold, or with an encoder that reads plain rows."""
    generator = torch.Generator().manual_seed(0)
    w_enc, w_dec = (
        torch.randn(16, 64, generator=generator) / 4,
        torch.randn(64, 16, generator=generator) / 4,
    )
    b_enc, b_dec = torch.randn(64, generator=generator) / 9, torch.randn(16, generator=generator)
    linear = {
        "encoder.weight": w_enc.T.contiguous(),
        "encoder.bias": b_enc,
        "decoder.weight": w_dec.T.contiguous(),
    }
    tensors = {
        "BatchTopKSAE": {**linear, "b_dec": b_dec, "k": torch.tensor(4), "threshold": torch.tensor(0.5)},
        "MatryoshkaBatchTopKSAE": {
            "W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec, "k": torch.tensor(4),
            "threshold": torch.tensor(0.5), "group_sizes": torch.tensor([16, 48]),
        },
        "AutoEncoderNew": {**linear, "decoder.bias": b_dec},
    }[kind]  # fmt: skip
    torch.save(tensors, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind}}))
    sae, _ = read_sae(tmp_path)
    if kind == "AutoEncoderNew":
        expected = torch.relu(X @ w_enc + b_enc)
    else:
        acts = torch.relu((X - b_dec) @ w_enc + b_enc)
        expected = acts * (acts > 0.5)
    torch.testing.assert_close(sae.encode(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.forward(X), expected @ w_dec + b_dec, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["topk", "standard", "gated", "jumprelu"])
def test_what_saelens_can_set_is_folded_or_refused(name, tmp_path):
    """An encoder of plain rows and latents times the decoder's norms are folded; the rest is an error."""
    sae = exported(tmp_path, name, "free")
    file = tmp_path / "cfg.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps({**plain, "apply_b_dec_to_input": False}))
    loaded, _ = read_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(X - sae.b_dec + loaded.b_dec * 0), loaded.encode(X - sae.b_dec))
    torch.testing.assert_close(loaded.encode(X - sae.b_dec), sae.encode(X), rtol=1e-4, atol=2e-5)
    file.write_text(json.dumps({**plain, "normalize_activations": "layer_norm"}))
    with pytest.raises(ConfigError, match="layer_norm"):
        read_sae(tmp_path)
    if name == "topk":
        file.write_text(json.dumps({**plain, "rescale_acts_by_decoder_norm": True}))
        norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
        pre = sae.preactivations(X - sae.b_dec) * norms
        top = pre.topk(4)
        latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        loaded, _ = read_sae(tmp_path)
        torch.testing.assert_close(loaded.encode(X), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            loaded.forward(X), latents / norms @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-5
        )


def test_what_cannot_be_read_is_named(tmp_path):
    """An empty folder, a transcoder, code instead of tensors and half a file are named errors."""
    with pytest.raises(ConfigError, match="known layout"):
        layout_of(tmp_path)
    exported(tmp_path / "own", "topk")
    convert(tmp_path / "own", tmp_path / "s", "sparsify")
    file = tmp_path / "s" / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transcode": True}))
    with pytest.raises(ConfigError, match="transcode"):
        read_sae(tmp_path / "s")
    convert(tmp_path / "own", tmp_path / "d", "dictionary_learning")
    torch.save({"encoder.weight": print}, tmp_path / "d" / "ae.pt")
    with pytest.raises(ConfigError, match="dictionary_learning"):
        read_sae(tmp_path / "d")
    save_file({"W_enc": torch.zeros(2, 3)}, tmp_path / "own" / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="own"):
        read_sae(tmp_path / "own")


def test_the_command_converts_and_compares(tmp_path):
    """`asysi sae convert` says what it found and how far the result differs."""
    exported(tmp_path / "own", "topk")
    for to in LAYOUTS:
        done = CliRunner().invoke(app, ["convert", str(tmp_path / "own"), str(tmp_path / to), "--to", to])
        assert done.exit_code == 0, done.output
        assert f"(saelens) -> {tmp_path / to} ({to}): largest difference" in done.output.replace("\n", "")
        assert layout_of(tmp_path / to) == to


def test_an_sae_is_never_converted_over_another(tmp_path):
    """Layouts share names of files: a folder that holds an SAE, or the source, is left as it is."""
    exported(tmp_path / "own", "topk")
    before = {file.name: file.read_bytes() for file in (tmp_path / "own").iterdir()}
    with pytest.raises(ConfigError, match=r"already holds cfg\.json and .*: name an empty folder"):
        convert(tmp_path / "own", tmp_path / "own", "sparsify")
    assert {file.name: file.read_bytes() for file in (tmp_path / "own").iterdir()} == before
