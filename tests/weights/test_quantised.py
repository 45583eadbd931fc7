"""Quantised checkpoints: rows of what the codes stand for, or codes that are called codes."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from asysi.weights.reading import quantised
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.reporting.report import WeightsPage, build, verdict
from asysi.weights.statistics.analysis import CheckpointOrigin, Settings, analyze

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def generator():
    return np.random.default_rng(3)


def rows_of(source, **options):
    """Return the rows by name, and the checkpoint's arrays."""
    with open_checkpoint(source) as checkpoint:
        done = analyze(checkpoint, CheckpointOrigin(str(source), "m"), Settings(**options))
        assert not done.problems
        arrays = {name: one.array() for name, one in checkpoint.tensors.items()}
    return {row["param_name"]: row for row in done.rows}, arrays


def written(folder, tensors, config=None):
    """Write tensors of torch or numpy and a config.json; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save = save_torch if isinstance(next(iter(tensors.values())), torch.Tensor) else save_file
    save(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    return folder


def write_gguf(file, **tensors):
    """Write {name: (array, type)} as a GGUF of the Llama architecture."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    for name, (array, kind) in tensors.items():
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name.replace("__", "."), gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def planted(rank=40, rows=512, cols=768):
    left, right = generator().standard_normal((rows, rank)), generator().standard_normal((rank, cols))
    return (left @ right / np.sqrt(rank) * 0.02).astype("f4")


class TestGguf:
    def test_the_row_says_what_is_stored(self, tmp_path):
        """A row has the stored type and bytes, what dequantised it, and the figures of the values."""
        x = planted()
        rows, arrays = rows_of(write_gguf(tmp_path / "m.gguf", a__weight=(x, "Q4_1")))
        row = rows["a.weight"]
        assert (row["dtype"], row["form"], row["elements"]) == ("Q4_1", "dequantised", x.size)
        assert row["bytes"] == x.size // 32 * 20
        assert row["dequantised_by"].startswith("gguf ")
        assert row["mean"] == pytest.approx(arrays["a.weight"].astype("f8").mean(), abs=1e-12)

    @pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0", "Q4_1"])
    def test_noise_is_that_of_the_stored_type(self, tmp_path, kind):
        """The rank beyond noise is the planted one; the floor is near the true σmax of the noise."""
        x = planted()
        rows, arrays = rows_of(write_gguf(tmp_path / "m.gguf", a__weight=(x, kind)))
        row = rows["a.weight"]
        truth = np.linalg.svd(arrays["a.weight"].astype("f8") - x, compute_uv=False)[0]
        assert row["rank_noise"] == 40
        assert row["rank"] == 512
        assert truth * 0.8 <= row["noise_floor"] <= truth * 1.5

    def test_a_real_file(self, smollm2):
        """SmolLM2-135M-Instruct: every row has its stored type, and the bytes come to the file's."""
        with open_checkpoint(smollm2) as checkpoint:
            tensors = checkpoint.tensors
            done = analyze(
                checkpoint,
                CheckpointOrigin(str(smollm2), "m"),
                names=["blk.3.ffn_down.weight", "output_norm.weight"],
            )
            assert {one.stored for one in tensors.values()} <= {"Q4_1", "Q8_0", "Q6_K", "float32"}
            stored = sum(one.stored_bytes for one in tensors.values())
            assert 0.95 * smollm2.stat().st_size < stored < smollm2.stat().st_size
            assert checkpoint.metadata["general.architecture"] == "llama"
        assert [row["dtype"] for row in done.rows] == ["Q4_1", "float32"]

    def test_a_noise_that_is_not_known_gives_no_rank(self, tmp_path):
        """Of a type with an uneven grid no rank beyond noise is given, and the note says so."""
        import gguf

        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        kind = gguf.GGMLQuantizationType.IQ4_NL
        raw = generator().integers(0, 255, (64, 2 * 18), dtype=np.uint8)
        raw[:, [1, 19]] = 0x2C
        writer.add_tensor("a.weight", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        row = rows_of(tmp_path / "m.gguf")[0]["a.weight"]
        assert (row["dtype"], row["rank_noise"], row["noise_floor"]) == ("IQ4_NL", None, None)
        assert "rounding of IQ4_NL is not known" in row["note"]


@pytest.mark.parametrize(
    ("shape", "grid", "suffix"),
    [
        ((256, 384), (2, 3), "_scale_inv"),
        ((200, 300), (2, 3), "_scale_inv"),
        ((64, 32), (), "_scale"),
        ((64, 32), (64, 1), "_scale"),
        ((3, 64, 32), (3, 64, 1), "_scale"),
    ],
)
def test_fp8_with_scales(tmp_path, shape, grid, suffix):
    """fp8 codes with scales per tensor, row or block become codes × scale; the scales have no row."""
    codes = (generator().standard_normal(shape) * 30).astype(E4M3)
    scale = np.asarray(0.001 * (1 + generator().random(grid)), "f4")
    wide = np.asarray(scale, "f8")
    if len(grid) == 2 and grid[1] > 1:
        wide = np.kron(scale, np.ones((128, 128)))[: shape[0], : shape[1]]
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]} if suffix == "_scale_inv" else None
    folder = tmp_path / "m"
    folder.mkdir()
    torch_codes = torch.from_numpy(codes.view("u1")).view(torch.float8_e4m3fn)
    written(folder, {"a.weight": torch_codes, f"a.weight{suffix}": torch.from_numpy(scale)}, config)
    rows, arrays = rows_of(folder)
    assert list(rows) == ["a.weight"]
    np.testing.assert_allclose(arrays["a.weight"], codes.astype("f8") * wide, rtol=1e-6)
    row = rows["a.weight"]
    assert (row["form"], row["dtype"]) == ("dequantised", "float8_e4m3fn × scale")
    assert row["bytes"] == codes.nbytes + scale.nbytes
    step = np.abs(codes.astype("f8"))
    step = np.exp2(np.floor(np.log2(np.maximum(step, 2.0**-6))) - 3) * wide
    noise = np.sqrt(np.square(step).mean() / 12)
    edge = 1.02 * noise * (np.sqrt(row["rows"]) + np.sqrt(row["cols"]))
    assert edge <= row["noise_floor"] < 2 * edge  # wider where rows or columns are unequal


def packed_words(codes, bits, axis):
    """Pack unsigned codes into int32 along an axis, the first in the lowest bits."""
    codes = np.moveaxis(codes, axis, -1).astype("u8")
    flat = (codes[..., None] >> np.arange(bits, dtype="u8") & 1).reshape(*codes.shape[:-1], -1)
    words = (
        (flat.reshape(*codes.shape[:-1], -1, 32) << np.arange(32, dtype="u8")).sum(-1).astype("u4").view("i4")
    )
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(tmp_path, bits, version):
    """GPTQ with its order of activation becomes scale · (code − zero), of both formats of zero points."""
    inputs, outputs, groups = 128, 64, 4
    codes = generator().integers(0, 1 << bits, (inputs, outputs))
    zeros = generator().integers(1, 1 << bits, (groups, outputs))
    scales = (0.01 + generator().random((groups, outputs)) / 50).astype("f2")
    order = generator().permutation(np.arange(inputs) % groups).astype("i4")
    tensors = {
        "a.qweight": packed_words(codes, bits, 0),
        "a.qzeros": packed_words(zeros - (version == "gptq"), bits, 1),
        "a.scales": scales,
        "a.g_idx": order,
        "a.bias": np.zeros(outputs, "f2"),
    }
    config = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version, "desc_act": True}
    rows, arrays = rows_of(written(tmp_path / "m", tensors, config))
    truth = (scales.astype("f8")[order] * (codes - zeros[order])).T
    np.testing.assert_allclose(arrays["a.weight"], truth, rtol=1e-6)
    assert set(rows) == {"a.weight", "a.bias"}
    assert (rows["a.weight"]["dtype"], rows["a.weight"]["shape"]) == (f"int{bits} GPTQ", "(64, 128)")


def test_awq(tmp_path):
    """AWQ's interleaved codes become scale · (code − zero)."""
    inputs, outputs, size = 128, 64, 32
    codes = generator().integers(0, 16, (inputs, outputs))
    zeros = generator().integers(0, 16, (inputs // size, outputs))
    scales = (0.01 + generator().random((inputs // size, outputs)) / 50).astype("f2")
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleaved(x):
        return packed_words(x.reshape(len(x), -1, 8)[:, :, order].reshape(len(x), -1), 4, 1)

    tensors = {"a.qweight": interleaved(codes), "a.qzeros": interleaved(zeros), "a.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    rows, arrays = rows_of(written(tmp_path / "m", tensors, config))
    truth = (scales.astype("f8").repeat(size, 0) * (codes - zeros.repeat(size, 0))).T
    np.testing.assert_allclose(arrays["a.weight"], truth, rtol=1e-6)
    assert rows["a.weight"]["dtype"] == "int4 AWQ"


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bit(tmp_path, kind, nested):
    """bitsandbytes' 4-bit weights, with nested scales or not, become near to what was quantised."""
    from bitsandbytes.functional import quantize_4bit

    x = torch.from_numpy(generator().standard_normal((96, 128)).astype("f4"))
    codes, state = quantize_4bit(x, quant_type=kind, compress_statistics=nested)
    parts = {f"a.weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    rows, arrays = rows_of(written(tmp_path / "m", {"a.weight": codes, **parts}))
    assert list(rows) == ["a.weight"]
    assert (rows["a.weight"]["shape"], rows["a.weight"]["dtype"]) == ("(96, 128)", f"{kind} bitsandbytes")
    error = arrays["a.weight"] - x.numpy()
    assert 0 < np.sqrt(np.square(error).mean()) < 0.2
    truth = np.linalg.svd(error.astype("f8"), compute_uv=False)[0]
    assert 0.6 * truth < rows["a.weight"]["noise_floor"] < 1.8 * truth


def test_bitsandbytes_8_bit(tmp_path):
    """bitsandbytes' 8-bit rows become code · SCB / 127."""
    codes = generator().integers(-127, 128, (32, 64)).astype("i1")
    scb = (1 + generator().random(32)).astype("f4")
    tensors = {"a.weight": codes, "a.SCB": scb, "a.weight_format": np.array(0, "u1")}
    rows, arrays = rows_of(written(tmp_path / "m", tensors, {"quant_method": "bitsandbytes"}))
    np.testing.assert_allclose(arrays["a.weight"], codes * (scb[:, None] / 127), rtol=1e-5)
    assert rows["a.weight"]["bytes"] == codes.nbytes + scb.nbytes + 1


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "int"), (4, False, "int"), (8, False, "int"), (4, True, "float")],
)
def test_compressed_tensors(tmp_path, bits, symmetric, kind):
    """What compressed-tensors wrote, packed or with zero points, is what it reads."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    x = torch.from_numpy(generator().standard_normal((64, 128)).astype("f4"))
    strategy, size = ("tensor_group", 16) if kind == "float" else ("group", 32)
    arguments = QuantizationArgs(
        num_bits=bits, type=kind, symmetric=symmetric, group_size=size, strategy=strategy
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    groups = x.reshape(64, -1, size)
    scale = groups.abs().amax(2) / (6 if kind == "float" else 2 ** (bits - 1) - 0.5)
    if not symmetric:
        scale = (groups.amax(2) - groups.amin(2)) / (2**bits - 1)
    zero = torch.round(-(2 ** (bits - 1)) - groups.amin(2) / scale).to(torch.int8)
    state = {"weight": x, "weight_scale": scale, "weight_zero_point": zero}
    if kind == "float":
        state = {
            "weight": x,
            "weight_scale": scale.to(torch.float8_e4m3fn).float(),
            "weight_global_scale": torch.ones(1),
        }
    elif symmetric:
        del state["weight_zero_point"]
    form = infer_module_format(torch.nn.Linear, scheme)
    compressor = BaseCompressor.get_value_from_registry(form.value)
    stored = compressor.compress(state, scheme)
    tensors = {f"a.{name}": one.contiguous() for name, one in stored.items()}
    group = {"targets": ["Linear"], "weights": arguments.model_dump(mode="json"), "format": form.value}
    config = {"quant_method": "compressed-tensors", "format": form.value, "config_groups": {"group_0": group}}
    rows, arrays = rows_of(written(tmp_path / "m", tensors, config))
    assert list(rows) == ["a.weight"]
    assert rows["a.weight"]["form"] == "dequantised"
    assert np.abs(arrays["a.weight"] - x.numpy()).max() < 16 / 2**bits
    assert np.corrcoef(arrays["a.weight"].ravel(), x.numpy().ravel())[0, 1] > 0.98


def test_mxfp4(tmp_path):
    """Blocks of FP4 with exponents become code · 2^(exponent − 127), inputs first as the model has them."""
    blocks = generator().integers(0, 256, (2, 8, 3, 16)).astype("u1")
    scales = generator().integers(120, 130, (2, 8, 3)).astype("u1")
    rows, arrays = rows_of(written(tmp_path / "m", {"a.up_blocks": blocks, "a.up_scales": scales}))
    codes = (
        np.stack([blocks & 15, blocks >> 4], -1)
        .reshape(2, 8, 3, 32)
        .view(ml_dtypes.float4_e2m1fn)
        .astype("f8")
    )
    truth = (codes * np.exp2(scales.astype("f8") - 127)[..., None]).reshape(2, 8, 96).swapaxes(1, 2)
    np.testing.assert_array_equal(arrays["a.up"], truth)
    assert rows["a.up"]["shape"] == "(2, 96, 8)"


class TestStoredForm:
    @pytest.fixture
    def gptq(self, tmp_path):
        tensors = {
            "a.qweight": generator().integers(0, 99, (16, 64)).astype("i4"),
            "a.qzeros": np.zeros((4, 8), "i4"),
            "a.scales": np.ones((4, 64), "f2"),
            "a.bias": np.zeros(64, "f2"),
        }
        return written(tmp_path / "m", tensors)

    def flagged(self, rows):
        return {name for name, row in rows.items() if row["form"] == "stored form, not weights"}

    def test_without_a_declaration(self, gptq):
        """Codes that nothing explains are called codes in their rows and in the headline; no ranks."""
        rows, _ = rows_of(gptq)
        assert self.flagged(rows) == {"a.qweight", "a.qzeros", "a.scales"}
        assert "config.json does not say how" in rows["a.qweight"]["note"]
        assert rows["a.scales"]["rank"] is None
        assert rows["a.bias"]["form"] == "weights"
        page = WeightsPage("m", list(rows.values()))
        assert "3 are in stored form, not weights" in verdict(page)
        assert "stored form, not weights" in build(page)

    def test_without_the_package(self, gptq, monkeypatch):
        """Without the package that undoes it the row says which to install."""
        (gptq / "config.json").write_text(
            json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}})
        )
        monkeypatch.setattr(quantised, "find_spec", lambda _name: None)
        rows, _ = rows_of(gptq)
        assert self.flagged(rows) == {"a.qweight", "a.qzeros", "a.scales"}
        assert "compressed-tensors: pip install 'asysi[dequantize]'" in rows["a.qweight"]["note"]

    def test_a_method_that_is_not_known(self, tmp_path):
        """Integers under a quantisation that nothing here undoes are flagged with its name."""
        tensors = {"a.W_q": np.zeros((8, 8), "u1"), "a.bias": np.zeros(8, "f4")}
        rows, _ = rows_of(written(tmp_path / "m", tensors, {"quant_method": "hqq"}))
        assert self.flagged(rows) == {"a.W_q"}
        assert "quantised by hqq" in rows["a.W_q"]["note"]

    def test_scales_that_do_not_fit(self, tmp_path):
        """Scales of a shape that no layout has are not guessed at."""
        tensors = {"a.weight": np.zeros((6, 8), "i1"), "a.weight_scale": np.ones((5, 7, 2), "f4")}
        rows, _ = rows_of(written(tmp_path / "m", tensors))
        assert self.flagged(rows) == {"a.weight", "a.weight_scale"}
        assert "do not fit" in rows["a.weight"]["note"]

    def test_plain_integers_are_not_flagged(self, tmp_path):
        """Positions and other buffers of integers are what they are."""
        tensors = {"embeddings.position_ids": np.arange(8).reshape(1, 8), "n": np.array(3)}
        assert not self.flagged(rows_of(written(tmp_path / "m", tensors))[0])


def test_complex_numbers(tmp_path):
    """Of complex numbers the statistics are of both parts, and the row says so."""
    x = (generator().standard_normal((4, 8)) + 2j * generator().standard_normal((4, 8))).astype("c8")
    save_torch({"a": torch.from_numpy(x)}, tmp_path / "model.safetensors")
    row = rows_of(tmp_path)[0]["a"]
    assert (row["dtype"], row["bytes"], row["elements"], row["rank"]) == ("complex64", 256, 32, None)
    assert row["frobenius"] == pytest.approx(np.linalg.norm(x.astype("c16")))
    assert "real and imaginary" in row["note"]


def test_float4_as_torch_writes_it(tmp_path):
    """torch's packed float4 has twice the columns of its bytes; the low half of a byte comes first."""
    codes = torch.arange(16, dtype=torch.uint8).view(2, 8)
    save_torch({"a": codes.view(torch.float4_e2m1fn_x2)}, tmp_path / "model.safetensors")
    rows, arrays = rows_of(tmp_path)
    raw = codes.numpy()
    truth = np.stack([raw & 15, raw >> 4], -1).reshape(2, 16).view(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(arrays["a"].astype("f8"), truth.astype("f8"))
    assert (rows["a"]["dtype"], rows["a"]["bytes"], rows["a"]["elements"]) == ("float4_e2m1fn", 16, 32)
