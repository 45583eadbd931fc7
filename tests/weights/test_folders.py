"""Whole checkpoints as they lie about: what is there is found, and what is not is called what it is."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from asysi.contract.errors import ConfigError
from asysi.weights.errors import LfsPointerError, MissingShardError, MissingTensorError
from asysi.weights.reading.checkpoint import open_checkpoint
from asysi.weights.reading.places import resolve_cache
from asysi.weights.run.orchestrator import identity_of
from asysi.weights.statistics.analysis import CheckpointOrigin, analyze

COMMIT, OTHER = "a" * 40, "b" * 40
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 90868376\n"


def save(folder, *files, name="w"):
    """Write each file with one tensor of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        save_file({f"{name}{number}": np.full((4, 3), number, "f4")}, folder / file)
    return folder


def opened(source):
    with open_checkpoint(source) as checkpoint:
        return sorted(checkpoint.tensors), checkpoint.problems, " ".join(checkpoint.notes)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_shards_missing_without_an_index(tmp_path, suffix):
    """The numbers in the files' names say how many there must be; each one that is not there is named."""
    if suffix == "gguf":
        from tests.weights.test_quantised import write_gguf

        write_gguf(tmp_path / "m-00002-of-00003.gguf", w0=(np.ones((4, 32), "f4"), "F32"))
    else:
        save(tmp_path, "m-00002-of-00003.safetensors")
    names, problems, _ = opened(tmp_path)
    assert names == ["w0"]
    assert [type(one) for one in problems] == [MissingShardError] * 2
    assert [str(one).partition(":")[0] for one in problems] == [
        f"m-0000{number}-of-00003.{suffix}" for number in (1, 3)
    ]


def test_one_shard_of_several(tmp_path):
    """A single file that is one of several shards is read, and said to be one of several."""
    file = save(tmp_path, "m-00002-of-00003.safetensors") / "m-00002-of-00003.safetensors"
    assert "one of 3 shards" in opened(file)[2]


class TestStaleIndex:
    def index(self, folder, **names):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    def test_beside_a_good_file(self, tmp_path):
        """An index whose files are gone does not hide the model that lies beside it."""
        save(tmp_path, "model.safetensors")
        self.index(tmp_path, w0="model-00001-of-00002.safetensors")
        names, problems, notes = opened(tmp_path)
        assert (names, problems) == (["w0"], [])
        assert "index.json is stale" in notes
        assert "model.safetensors" in notes

    def test_of_another_model(self, tmp_path):
        """What the stale index names and no file holds is a problem."""
        save(tmp_path, "model.safetensors")
        self.index(tmp_path, w0="gone.safetensors", w9="gone.safetensors")
        assert [(type(one), one.tensors) for one in opened(tmp_path)[1]] == [(MissingTensorError, ("w9",))]

    def test_files_that_it_does_not_name(self, tmp_path):
        """Files beside the index are not read, and named."""
        save(tmp_path, "a.safetensors", "consolidated.safetensors")
        self.index(tmp_path, w0="a.safetensors")
        names, problems, notes = opened(tmp_path)
        assert (names, problems) == (["w0"], [])
        assert "not read: consolidated.safetensors" in notes


def test_variants_beside_the_model(tmp_path):
    """`model.safetensors` is the model; variants and adapters beside it are not read, and named."""
    save(tmp_path, "model.safetensors", "model.fp16.safetensors", "adapter_model.safetensors")
    names, problems, notes = opened(tmp_path)
    assert (names, problems) == (["w0"], [])
    assert "not read: adapter_model.safetensors, model.fp16.safetensors" in notes


def test_several_gguf(tmp_path):
    """A folder with several GGUF models says to give one."""
    from tests.weights.test_quantised import write_gguf

    for kind in ("Q8_0", "Q4_0"):
        write_gguf(tmp_path / f"m.{kind}.gguf", w0=(np.ones((4, 32), "f4"), kind))
    with pytest.raises(ConfigError, match=r"several models: give one of m\.Q4_0\.gguf, m\.Q8_0\.gguf"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "model.gguf", "model.npz"])
def test_git_lfs_pointer(tmp_path, file):
    """A Git LFS pointer is called that, with the size of what it stands for and the command to fetch it."""
    (tmp_path / file).write_text(POINTER)
    _, problems, _ = opened(tmp_path)
    assert [type(one) for one in problems] == [LfsPointerError]
    assert f"{file}: it is a Git LFS pointer to 90868376 bytes" in str(problems[0])
    assert "git lfs pull" in str(problems[0])


class TestHubCache:
    @pytest.fixture
    def cached(self, tmp_path):
        folder = tmp_path / "hub" / "models--owner--na--me"
        blobs = save(folder / "blobs", "one")
        for commit in (COMMIT, OTHER):
            (folder / "snapshots" / commit).mkdir(parents=True)
            (folder / "snapshots" / commit / "model.safetensors").symlink_to(blobs / "one")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(OTHER)
        return folder

    def test_main_is_read(self, cached):
        """A model's folder stands for the snapshot of main; its name and commit are the identity."""
        assert opened(cached)[0] == ["w0"]
        identity = identity_of(cached)
        assert (identity.model_id, identity.revision) == ("owner/na/me", OTHER)
        assert identity.model_path.endswith(OTHER)

    def test_a_snapshot(self, cached):
        """A snapshot's folder has that identity too."""
        identity = identity_of(cached / "snapshots" / COMMIT)
        assert (identity.model_id, identity.revision) == ("owner/na/me", COMMIT)

    def test_another_revision(self, cached):
        """A revision may be asked for; one that is not there is refused with those that are."""
        assert resolve_cache(cached, COMMIT).name == COMMIT
        with pytest.raises(ConfigError, match=f"without revision v2: it has {COMMIT}, {OTHER}"):
            resolve_cache(cached, "v2")

    def test_nobody_says_which(self, cached):
        """Two snapshots without a main are not guessed at; one is taken."""
        (cached / "refs" / "main").unlink()
        with pytest.raises(ConfigError, match="one revision that is meant"):
            opened(cached)
        (cached / "snapshots" / OTHER / "model.safetensors").unlink()
        (cached / "snapshots" / OTHER).rmdir()
        assert opened(cached)[0] == ["w0"]

    def test_the_cache_itself(self, cached):
        """The whole cache says which models it has."""
        with pytest.raises(ConfigError, match="cache of 1 models: give one, as models--owner--na--me"):
            opened(cached.parent)

    def test_a_download_that_did_not_end(self, cached):
        """Links to files that never came are called that."""
        (cached / "blobs" / "one").unlink()
        with pytest.raises(ConfigError, match=r"model\.safetensors are links to nothing"):
            opened(cached)


def test_a_folder_of_models(tmp_path):
    """A folder above the weights names the folders that hold them."""
    save(tmp_path / "unet", "model.safetensors")
    with pytest.raises(ConfigError, match="give one of its folders, unet"):
        opened(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match="pipeline of several models"):
        opened(tmp_path)


@pytest.mark.parametrize("shape", [(30, 20), (1200, 1000), (64,), ()])
@pytest.mark.parametrize("value", [1e200, 8e307])
def test_an_overflow_is_one_tensor_s(tmp_path, shape, value):
    """Numbers whose squares are beyond float64 cost that tensor's figures, not the analysis."""
    x = np.full(shape, value) * (1 + np.random.default_rng(0).random(shape))
    x = np.asarray(np.minimum(x, 1.7e308))
    save_file({"big": x, "w": np.ones((4, 3))}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        done = analyze(checkpoint, CheckpointOrigin("", ""))
    assert not done.problems
    rows = {row["param_name"]: row for row in done.rows}
    assert rows["w"]["std"] == 0
    assert rows["big"]["max"] == x.max()
    assert rows["big"]["finite"] == x.size
    for row in rows.values():
        assert all(np.isfinite(one) for one in row.values() if isinstance(one, float))


def test_whatever_a_tensor_raises(tmp_path, monkeypatch):
    """An error that nobody foresaw in one tensor is listed with its name and shape; the others have rows."""
    save_file({"bad": np.ones((4, 3)), "w": np.ones((4, 3))}, tmp_path / "model.safetensors")
    from asysi.weights.statistics import analysis

    def measured(tensor, settings, real=analysis._measured):
        if tensor.name == "bad":
            raise OverflowError(34, "Numerical result out of range")
        return real(tensor, settings)

    monkeypatch.setattr(analysis, "_measured", measured)
    with open_checkpoint(tmp_path) as checkpoint:
        done = analyze(checkpoint, CheckpointOrigin("", ""))
    assert [row["param_name"] for row in done.rows] == ["w"]
    assert "bad (4, 3): OverflowError" in done.problems[0].listed
