"""Mistakes become sentences that name file, line, path, and what was probably meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.contract.errors import ConfigError
from asysi.contract.loading import check, load

Tree = dict[str, Any]
Minimal = Callable[..., Tree]


def problems(tree: Tree) -> list[str]:
    """Return what is said about an experiment."""
    with pytest.raises(ConfigError) as error:
        check(tree)
    return error.value.problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"captrue": {}}, "spec.captrue is not a known key: did you mean capture?"),
        (
            {"capture": {"hook_points": []}},
            "spec.capture.hook_points is not a known key: did you mean hookPoints?",
        ),
        (
            {"sae": {"train": [{"Latents": 8}]}},
            "spec.sae.train[0].Latents is not a known key: did you mean latents?",
        ),
        ({"latents": 8}, "spec.latents is not a key here: it belongs to spec.sae.train[].latents"),
        ({"bus": {"qqq": 1}}, "spec.bus.qqq is not a known key: the keys here are shards, size, redis"),
        (
            {"resources": {"binding": {"cpus": {"hots": "0"}}}},
            "spec.resources.binding.cpus.hots is not a known key: did you mean host?",
        ),
        ({"mode": "hpc"}, "spec.mode must be HPC or CONSUMER, not the text 'hpc'; did you mean HPC?"),
        (
            {"capture": {"quantization": 8}},
            "spec.capture.quantization must be none or bf16 or fp8 or int8, not 8",
        ),
        ({"capture": {"hookPoints": None}}, "spec.capture.hookPoints is missing: Globs on the paths of"),
        ({"capture": {"hookPoints": []}}, "spec.capture.hookPoints needs at least 1 entry"),
        ({"capture": {"hookPoints": ["a", 3]}}, "spec.capture.hookPoints[1] must be text, not 3"),
        (
            {"capture": {"hookPoints": ["a" * 192]}},
            "spec.capture.hookPoints[0] has 192 characters, 191 are allowed",
        ),
        ({"capture": {"hookPoints": [""]}}, "spec.capture.hookPoints[0] must not be empty"),
        (
            {"capture": {"hookPoints": ["a"] * 257}},
            "spec.capture.hookPoints has 257 entries, 256 are allowed",
        ),
        ({"bus": {"shards": 0}}, "spec.bus.shards must be at least 1, not 0"),
        (
            {
                "data": {
                    "pipeline": {"operators": [{"operator": "o"}], "secretRefs": [{"name": "s", "key": "1"}]}
                }
            },
            "spec.data.pipeline.secretRefs[0].key must be the name of a variable, like OPENAI_API_KEY",
        ),
        (
            {
                "data": {
                    "pipeline": {
                        "operators": [{"operator": "o"}],
                        "secretRefs": [{"name": "s", "key": "ASYSI_CONFIG"}],
                    }
                }
            },
            "spec.data.pipeline.secretRefs[0].key is ASYSI_CONFIG, a reserved variable",
        ),
        ({"bus": {"shards": 65}}, "spec.bus.shards must be at most 64, not 65"),
        ({"bus": {"shards": 1.5}}, "spec.bus.shards must be a whole number, not 1.5"),
        ({"bus": {"shards": True}}, "spec.bus.shards must be a whole number, not true"),
        ({"bus": {"shards": "2"}}, "spec.bus.shards must be a whole number, not the text '2'"),
        (
            {"bus": {"size": "64Bi"}},
            "spec.bus.size must be a memory quantity, like 64Mi or 2Gi, not the text '64Bi'",
        ),
        ({"bus": []}, "spec.bus must be a mapping, not a list"),
        (
            {"capture": {"sampling": {"rate": float("nan")}}},
            "spec.capture.sampling.rate must be a finite number, not nan",
        ),
        ({"capture": {"sampling": {"rate": 0}}}, "spec.capture.sampling.rate must be more than 0, not 0"),
        ({"archive": {"enabled": "yes"}}, "spec.archive.enabled must be true or false, not the text 'yes'"),
        ({"model": {"sha256": "abc"}}, "spec.model.sha256 must be a SHA-256"),
        (
            {"resources": {"binding": {"cpus": {"host": "0-"}}}},
            "spec.resources.binding.cpus.host must be a list of proc",
        ),
        (
            {"sae": {"train": [{"stop": {"fvu": 1.0}}]}},
            "spec.sae.train[0].stop.fvu must be less than 1, not 1.0",
        ),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_each_mistake_is_one_sentence(minimal: Minimal, change: Tree, said: str) -> None:
    """A mistake is said once, with its path, what is wrong, and what was meant."""
    sentences = problems(minimal(change))
    assert len(sentences) == 1
    assert sentences[0].startswith(said)


def test_metadata_is_checked(minimal: Minimal) -> None:
    """Keys of the metadata that neither we nor Kubernetes know are refused, and the name must fit."""
    tree = minimal()
    tree["metadata"] = {"name": "Mini_LM", "label": {}}
    said = problems(tree)
    assert any(sentence.startswith("metadata.name must be at most 52 of a-z") for sentence in said)
    assert "metadata.label is not a known key: did you mean labels?" in said


def test_all_mistakes_are_told_at_once_each_with_its_file_and_line(tmp_path: Path, minimal: Minimal) -> None:
    """Types, unknown keys, rules and missing features are reported together, by the file that states them."""
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(
        yaml.safe_dump(minimal({"sae": {"train": [{"k": 9, "latents": 8}]}, "bus": {"shard": 1}}))
    )
    over.write_text("spec:\n  capture:\n    positions: {mode: last}\n    sampling: {rate: 2}\n")
    with pytest.raises(ConfigError) as error:
        load([base, over], ["spec.resources.binding.numa=0"])
    lines = {
        text.strip().partition(":")[0]: number for number, text in enumerate(base.read_text().splitlines(), 1)
    }
    assert error.value.problems == [
        f"{base}:{lines['shard']}: spec.bus.shard is not a known key: did you mean shards?",
        f"{base}:{lines['- k']}: spec.sae.train[0].k is 9, but the trainer has only 8 latents:"
        " lower k or raise latents",
        f"{over}:3: spec.capture.positions.mode last is not available yet: every content token is captured;"
        " use `all` and lower sampling.rate",
        f"{over}:4: spec.capture.sampling.rate must be at most 1, not 2",
        "--set spec.resources.binding.numa=0: spec.resources.binding.numa is not available yet: start"
        " `asysi run` under `numactl --membind`",
    ]  # fmt: skip


def test_what_is_missing_altogether_is_laid_to_the_last_file(tmp_path: Path) -> None:
    """A key that no file has is reported with the file that was to have it."""
    path = tmp_path / "scan.yaml"
    path.write_text("kind: ScanExperiment\n")
    with pytest.raises(ConfigError) as error:
        load([path])
    assert [text.partition(" is missing")[0] for text in error.value.problems] == [
        f"{path}:1: metadata",
        f"{path}:1: spec",
    ]


def test_rules_between_fields(broken: tuple[str, Tree]) -> None:
    """Each rule refuses what breaks it, in one sentence that begins with the field to change."""
    sentences = problems(broken[1])
    assert sentences
    assert all(sentence.startswith("spec.") for sentence in sentences)


def test_the_memory_of_prepare_is_added_up(minimal: Minimal) -> None:
    """Rings that do not fit beside prepare are refused with the sum."""
    (sentence,) = problems(minimal({"bus": {"size": "2Gi"}}))
    assert sentence == (
        "spec.resources.prepare.memory is 2Gi, but capture.size 64Mi + bus.size 2Gi + 512Mi for prepare"
        " itself = 2624Mi: raise it, or make the rings smaller"
    )
