"""Comparisons that names alone cannot make, and changes that norms alone do not show."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from asysi.contract.errors import ConfigError
from asysi.weights.comparing.compare import compare, said_in_short, totals
from asysi.weights.reading.checkpoint import open_checkpoint


def generator(seed=0):
    return np.random.default_rng(seed)


def compared(tmp_path, before, after, **options):
    """Compare two checkpoints: tensors by name, or a folder."""
    folders = []
    for name, tensors in (("before", before), ("after", after)):
        folder = tensors
        if isinstance(tensors, dict):
            folder = tmp_path / name
            folder.mkdir()
            save_file(tensors, folder / "model.safetensors")
        folders.append(folder)
    with open_checkpoint(folders[0]) as first, open_checkpoint(folders[1]) as second:
        done = compare(first, second, **options)
    return {row["param_name"]: row for row in done.rows}, done


def model(layers=3, prefix="", seed=0, noise=0.0):
    """A small encoder; `noise` is how far it was trained."""
    x, more = generator(seed), generator(seed + 100)
    shapes = {
        f"encoder.layer.{n}.{part}.weight": (24, 32) for n in range(layers) for part in ("query", "key")
    }
    shapes |= {f"encoder.layer.{n}.norm.weight": (300,) for n in range(layers)}
    shapes["embeddings.word_embeddings.weight"] = (50, 32)
    made = {}
    for name, shape in shapes.items():
        value = x.standard_normal(shape)
        made[prefix + name] = (value + noise * more.standard_normal(shape)).astype("f4")
    return made


class TestNothingIsHidden:
    def test_gained_nans(self, tmp_path):
        """A tensor that gained a NaN is changed, has no change of 0.0, and the headline counts it."""
        before = {"w": generator().standard_normal((8, 8)).astype("f4"), "v": np.ones(4, "f4")}
        broken = before["w"].copy()
        broken[2, 3] = np.nan
        rows, done = compared(tmp_path, before, {**before, "w": broken})
        row = rows["w"]
        assert (row["status"], row["changed"], row["not_finite_a"], row["not_finite_b"]) == (
            "changed",
            1,
            0,
            1,
        )
        assert [row[one] for one in ("delta_norm", "delta_relative", "delta_max", "cosine")] == [None] * 4
        assert "1 after" in row["note"]
        assert "1 gained elements that are not finite" in said_in_short(totals(done.rows))

    def test_nans_and_a_change(self, tmp_path):
        """Where other elements changed too, the norms are of what is finite in both."""
        before = np.ones(4)
        rows, _ = compared(tmp_path, {"w": before}, {"w": np.array([np.nan, 3, 1, 1])})
        assert (rows["w"]["delta_norm"], rows["w"]["changed"]) == (2.0, 2)

    @pytest.mark.parametrize("kinds", [("i8", "i8"), ("u8", "u8"), ("i8", "u8"), ("i8", "f8")])
    def test_integers_beyond_2_53(self, tmp_path, kinds):
        """Integers that float64 cannot tell apart are not the same."""
        a, b = (2**53, 2**53 + 2) if kinds[1] == "f8" else (2**60, 2**60 + 1)
        before = {"n": np.array([a + (kinds[1] == "f8"), 5], kinds[0])}
        rows, _ = compared(tmp_path, before, {"n": np.array([b, 5], kinds[1])})
        assert (rows["n"]["status"], rows["n"]["changed"], rows["n"]["delta_max"]) == ("changed", 1, 1.0)

    def test_zero_before(self, tmp_path):
        """A matrix that was zero has no relative change, not one of nothing, and the headline counts it."""
        after = {"w": np.ones((4, 4), "f4")}
        rows, done = compared(tmp_path, {"w": np.zeros((4, 4), "f4")}, after)
        assert (rows["w"]["status"], rows["w"]["delta_relative"], rows["w"]["delta_norm"]) == (
            "changed",
            None,
            4.0,
        )
        assert "zero before" in rows["w"]["note"]
        assert totals(done.rows)["delta_relative"] is None
        assert "1 were zero before" in said_in_short(totals(done.rows))

    def test_complex_numbers(self, tmp_path):
        """The imaginary part counts."""
        rows, _ = compared(tmp_path, {"w": np.array([1 + 1j], "c8")}, {"w": np.array([1 + 4j], "c8")})
        assert (rows["w"]["status"], rows["w"]["delta_norm"]) == ("changed", 3.0)

    def test_an_overflow_is_one_tensor_s(self, tmp_path):
        """Numbers whose squares are beyond float64 do not end the comparison."""
        big = np.full((4, 4), 1e200)
        rows, done = compared(tmp_path, {"big": big, "w": np.ones(3)}, {"big": 2 * big, "w": np.ones(3)})
        assert rows["w"]["status"] == "same"
        assert rows["big"]["status"] in {"changed", "failed"}
        assert rows["big"]["delta_norm"] != 0.0
        assert len(done.problems) == (rows["big"]["status"] == "failed")


class TestPairs:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("bert.", ""),
            ("", "bert."),
            ("model.", "model.language_model."),
            ("transformer.", "base.model."),
        ],
    )
    def test_prefixes(self, tmp_path, before, after):
        """Tensors that differ by a prefix are compared; layers are not mixed up."""
        rows, done = compared(tmp_path, model(prefix=before), model(prefix=after, noise=0.01))
        assert {row["status"] for row in done.rows} == {"changed"}
        for name, row in rows.items():
            assert row["renamed_to"] == after + name.removeprefix(before)
            assert row["matched_by"] == "prefix"
            assert 0 < row["delta_relative"] < 0.02

    def test_by_hash(self, tmp_path):
        """Equal bytes under any name are one tensor; of two equal ones unknown protocol which."""
        x = generator().standard_normal((5, 6))
        before = {"one.x": x, "u": np.ones(7), "v": np.ones(7)}
        rows, _ = compared(tmp_path, before, {"other": x, "y": np.ones(7)})
        assert (rows["one.x"]["renamed_to"], rows["one.x"]["matched_by"]) == ("other", "hash")
        assert rows["one.x"]["status"] == "same"
        assert [rows[name]["status"] for name in "uvy"] == ["removed", "removed", "added"]

    def test_by_correlation(self, tmp_path):
        """Renamed and trained tensors are found by their values, each in its own layer."""
        before, trained = model(), model(noise=0.2)
        names = {name: f"block_{number}" for number, name in enumerate(before)}
        rows, done = compared(tmp_path, before, {names[name]: one for name, one in trained.items()})
        assert {name: row["renamed_to"] for name, row in rows.items()} == names
        assert {row["matched_by"] for row in done.rows} == {"correlation"}

    def test_strangers_are_not_paired(self, tmp_path):
        """Other models of the same shapes are added and removed, not a large change."""
        after = {f"x{number}": one for number, one in enumerate(model(seed=7).values())}
        _, done = compared(tmp_path, model(), after)
        assert {row["status"] for row in done.rows} == {"added", "removed"}

    @pytest.mark.parametrize("rows_after", [60, 40])
    def test_a_resized_vocabulary(self, tmp_path, rows_after):
        """Of embeddings with more or fewer rows the common ones are compared, and said to be so."""
        before = model()
        name = "embeddings.word_embeddings.weight"
        table = np.concatenate([before[name], np.ones((10, 32), "f4")])[:rows_after]
        table[3, 3] += 1
        rows, done = compared(tmp_path, before, {**before, name: table})
        row = rows[name]
        assert (row["status"], row["rows_compared"], row["changed"]) == ("resized", min(50, rows_after), 1)
        assert row["delta_norm"] == pytest.approx(1, rel=1e-6)
        assert f"(50, 32) before, ({rows_after}, 32) after" in row["note"]
        assert "1 resized" in said_in_short(totals(done.rows))

    def test_other_shapes_are_reshaped(self, tmp_path):
        """Rows of a matrix that is not a table mean nothing to each other."""
        rows, _ = compared(tmp_path, {"q_proj.weight": np.ones((4, 4))}, {"q_proj.weight": np.ones((6, 4))})
        assert (rows["q_proj.weight"]["status"], rows["q_proj.weight"]["delta_norm"]) == ("reshaped", None)


def test_gguf_against_transformers(tmp_path):
    """A GGUF is compared with the model of transformers that it was made of, rows of q and k in order."""
    import gguf

    heads, width = 4, 32
    names = {
        "model.embed_tokens.weight": ("token_embd.weight", (40, width)),
        "model.layers.0.self_attn.q_proj.weight": ("blk.0.attn_q.weight", (width, width)),
        "model.layers.0.self_attn.k_proj.weight": ("blk.0.attn_k.weight", (width // 2, width)),
        "model.layers.0.mlp.down_proj.weight": ("blk.0.ffn_down.weight", (width, 64)),
    }
    before = {
        name: generator(n).standard_normal(shape).astype("f4")
        for n, (name, (_, shape)) in enumerate(names.items())
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    for name, (stored, _) in names.items():
        x = before[name]
        if "attn_q" in stored or "attn_k" in stored:
            count = heads if "attn_q" in stored else heads // 2
            x = x.reshape(count, 2, len(x) // count // 2, -1).swapaxes(1, 2).reshape(x.shape)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(stored, gguf.quantize(np.ascontiguousarray(x), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rows, _ = compared(tmp_path, before, tmp_path / "m.gguf")
    assert {name: row["renamed_to"] for name, row in rows.items()} == {
        name: one for name, (one, _) in names.items()
    }
    for row in rows.values():
        assert (row["matched_by"], row["status"], row["dtype"]) == ("gguf", "changed", "float32 → Q8_0")
        assert 0 < row["delta_relative"] < 0.01


class TestLora:
    def adapter(self, folder, tensors, **config):
        folder.mkdir()
        save_file(
            {f"base_model.model.{name}": one.astype("f4") for name, one in tensors.items()},
            folder / "adapter_model.safetensors",
        )
        said = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, **config}
        (folder / "adapter_config.json").write_text(json.dumps(said))
        return folder

    @pytest.mark.parametrize(
        ("config", "scale"),
        [
            ({}, 4.0),
            ({"use_rslora": True}, 8.0),
            ({"alpha_pattern": {"query": 4}}, 1.0),
            ({"fan_in_fan_out": True}, 4.0),
        ],
    )
    @pytest.mark.parametrize("square", [True, False])
    def test_the_change_is_b_a(self, tmp_path, config, scale, square):
        """An adapter is compared as its change to the base, α/r as the configuration says."""
        x = generator()
        outputs, inputs = (32, 32) if square else (24, 32)
        flip = "fan_in_fan_out" in config
        name = "encoder.layer.0.query"
        w = x.standard_normal((inputs, outputs) if flip else (outputs, inputs))
        a, b = x.standard_normal((4, inputs)), x.standard_normal((outputs, 4))
        base = {f"{name}.weight": w.astype("f4"), "norm.weight": np.ones(8, "f4")}
        folder = self.adapter(
            tmp_path / "lora", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, **config
        )
        rows, done = compared(tmp_path, base, folder)
        delta = scale * (b.astype("f4").astype("f8") @ a.astype("f4").astype("f8"))
        row = rows[f"{name}.weight"]
        assert not done.problems
        assert row["delta_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-9)
        assert (row["delta_rank_f32tol"], row["dtype"]) == (4, "float32 → float32 + LoRA")
        assert row["delta_sigma_max"] == pytest.approx(np.linalg.norm(delta, 2), rel=1e-9)
        after = base[f"{name}.weight"].astype("f8") + (delta.T if flip else delta)
        assert row["norm_b"] == pytest.approx(np.linalg.norm(after), rel=1e-9)
        assert rows["norm.weight"]["status"] == "same"

    def test_embeddings_and_whole_modules(self, tmp_path):
        """Adapters of embeddings are transposed, and modules that were saved whole replace the base's."""
        x = generator()
        a, b = x.standard_normal((4, 50)), x.standard_normal((32, 4))
        base = {"wte.weight": np.zeros((50, 32), "f4"), "score.weight": np.ones((3, 32), "f4")}
        tensors = {
            "wte.lora_embedding_A": a,
            "wte.lora_embedding_B": b,
            "score.weight": np.full((3, 32), 2.0),
        }
        rows, done = compared(tmp_path, base, self.adapter(tmp_path / "lora", tensors))
        assert not done.problems
        assert rows["wte.weight"]["delta_norm"] == pytest.approx(4 * np.linalg.norm(b @ a), rel=1e-6)
        assert rows["score.weight"]["delta_relative"] == 1.0

    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            (
                {"gone.lora_A.weight": np.ones((4, 8)), "gone.lora_B.weight": np.ones((8, 4))},
                "no such parameter",
            ),
            ({"w.lora_A.weight": np.ones((4, 9)), "w.lora_B.weight": np.ones((8, 4))}, "does not fit"),
            ({"w.lora_A.weight": np.ones((4, 8)), "w.lora_B.weight": np.ones((8, 3))}, "no common rank"),
            ({"w.lora_A.weight": np.ones((4, 8))}, "other half is missing"),
            (
                {
                    "w.lora_A.weight": np.ones((4, 8)),
                    "w.lora_B.weight": np.ones((8, 4)),
                    "w.lora_magnitude_vector": np.ones(8),
                },
                "DoRA",
            ),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, tensors, said):
        """A part that cannot be added to the base is a problem with its reason, never silently left out."""
        folder = self.adapter(tmp_path / "lora", tensors)
        _, done = compared(tmp_path, {"w.weight": np.ones((8, 8), "f4")}, folder)
        assert len(done.problems) == 1
        assert said in done.problems[0].listed

    def test_another_kind(self, tmp_path):
        """An adapter that is not LoRA is refused."""
        folder = self.adapter(tmp_path / "ia3", {"w.ia3_l": np.ones(8)}, peft_type="IA3")
        with pytest.raises(ConfigError, match="of type IA3: only LoRA"):
            compared(tmp_path, {"w.weight": np.ones((8, 8), "f4")}, folder)


def test_an_adapter_of_a_real_layer(tmp_path):
    """torch agrees: the merged linear layer gives the outputs of base and adapter."""
    base = torch.nn.Linear(16, 8, bias=False)
    a, b = torch.randn(4, 16), torch.randn(8, 4)
    folder = TestLora().adapter(
        tmp_path / "lora", {"w.lora_A.weight": a.numpy(), "w.lora_B.weight": b.numpy()}
    )
    from asysi.weights.reading.adapters import merged

    save_file({"w.weight": base.weight.detach().numpy()}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as first, open_checkpoint(folder) as second:
        whole = merged(first, second).tensors["w.weight"].array()
    x = torch.randn(5, 16)
    truth = base(x) + 4 * (x @ a.T @ b.T)
    np.testing.assert_allclose(x.numpy() @ whole.T, truth.detach().numpy(), rtol=1e-4, atol=1e-4)
