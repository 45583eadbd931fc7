"""A disk that fills up: the run ends, or the model goes on, with one sentence; nothing is half written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asysi.contract.errors import ConfigError, no_room
from asysi.files import is_full, write_atomic, write_atomically
from asysi_operator.local.events import Events
from asysi_operator.local.output import OutputFolder
from asysi_operator.local.run_directories import RunDirectories


@pytest.fixture
def disk(tmp_path: Path, small_disk: Callable[[Path, str], Path]) -> Path:
    """A file system of 1 MiB."""
    return small_disk(tmp_path / "disk", "1m")


def fill(folder: Path, name: str = "ballast") -> Path:
    """Fill a file system to the last byte."""
    ballast = folder / name
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


def test_a_file_that_finds_no_room_leaves_the_old_one(disk):
    """An atomic write that fails leaves the old content alone, and works once there is room."""
    file = disk / "progress.json"
    write_atomic(file, "old")
    ballast = fill(disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(file, "new" * 10_000)
    assert is_full(caught.value)
    assert {path.name for path in disk.iterdir()} == {"progress.json", "ballast"}
    assert file.read_text() == "old"
    ballast.unlink()
    write_atomic(file, "new")
    assert file.read_text() == "new"


def test_a_library_that_finds_no_room_is_understood(disk):
    """safetensors says it in words alone: it is the same to us, and leaves nothing behind."""
    import torch
    from safetensors.torch import save_file

    fill(disk)
    tensors = {"a": torch.zeros(100_000)}
    with pytest.raises(Exception, match=r"(?i)space|error 28") as caught:
        write_atomically(disk / "a.ckpt", lambda temporary: save_file(tensors, temporary))
    assert is_full(caught.value)
    assert [path.name for path in disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("error", [None, ValueError("x"), OSError(5, "Input/output error")])
def test_other_errors_are_not_taken_for_it(error):
    """Only a full storage is called full."""
    assert not is_full(error)


def test_events_that_cannot_be_written_end_nothing(disk):
    """Events describe the run: a full disk loses lines, whole ones, and later ones are written again."""
    with Events(disk / "events.jsonl") as events:
        events.write("host", "started", attempt=0)
        ballast = fill(disk)
        for _ in range(100):
            events.write("host", "exited", attempt=0, code=1, reason="r" * 100)
        assert events.lost > 0
        ballast.unlink()
        events.write("host", "started", attempt=1)
    lines = (disk / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["attempt"] == 0
    assert json.loads(lines[-1])["attempt"] == 1


def test_an_event_that_is_cut_anywhere_stays_apart_from_the_next(tmp_path):
    """Wherever a full disk cuts an event, also the one that ends a torn line, the next stands on its own."""

    class Short:
        """A file that takes so many bytes of each write, then all."""

        def __init__(self, file, cuts):
            self.file, self.cuts = file, list(cuts)

        def write(self, text):
            return self.file.write(text[: self.cuts.pop(0)] if self.cuts else text)

        def __getattr__(self, name):
            return getattr(self.file, name)

    for cut in range(1, 130):
        path = tmp_path / f"events-{cut}.jsonl"
        with Events(path) as events:
            events._file = Short(events._file, [7, cut])
            for attempt in range(4):
                events.write("host", "started", attempt=attempt)
        lines = path.read_text().splitlines()
        assert [json.loads(line)["attempt"] for line in lines[-2:]] == [2, 3], cut


def test_a_disk_that_is_full_already_is_refused(disk):
    """A run that cannot even state its experiment is refused in one sentence, and leaves nothing."""
    output = OutputFolder(disk / "run")
    output.open(overwrite=False)
    fill(disk)
    with pytest.raises(ConfigError, match=r"no room is left in .*/disk/run \(1 MiB in total\)"):
        output.write("experiment.yaml", "x" * 100_000)
    output.discard()
    assert {path.name for path in disk.iterdir()} == {"ballast"}


def test_a_scratch_folder_without_room_is_refused(disk, tmp_path):
    """A run whose configuration cannot be written is refused in one sentence, and leaves nothing."""
    with RunDirectories("tiny", shared=tmp_path, scratch=disk) as directories:
        fill(disk)
        with pytest.raises(ConfigError, match=r"no room is left in .*/disk"):
            directories.write_config({"experiment.json": "x" * 100_000})
    assert {path.name for path in disk.iterdir()} == {"ballast"}
    assert not list(tmp_path.glob("asysi-*"))


def test_the_run_stops_in_one_sentence(pod):
    """A sidecar without room ends the run: exit code 1, no new attempt, one sentence with the option."""
    pod.plans["archiver"] = {"seconds": 0.3, "code": 1, "says": no_room(pod.shared)}
    pod.plans["host"] = {"seconds": 30}
    runner = pod.begin()
    code, said = pod.finished()
    assert runner.returncode == code == 1
    assert said.count("no room") == 1
    assert f"  {no_room(pod.shared)} with --resume\n" in said
    assert "Traceback" not in said
    assert pod.journal().count("archiver started") == 1


def test_a_host_without_room_is_not_tried_again(pod):
    """The model that stops because there is no room ends the run: a new attempt would find none either."""
    pod.plans["host"] = {"seconds": 0.3, "code": 1, "says": no_room(pod.shared)}
    pod.plans["finish"] = {"seconds": 0.5, "code": 1}
    assert pod.run() == 1
    assert [event for event, _ in pod.events("host")] == ["started", "exited"]


def test_the_model_goes_on_if_it_is_to(pod):
    """With `whenFull: continue` sidecars come back again and again, and the model comes to its end."""
    full = {"code": 1, "says": no_room(pod.shared)}
    pod.plans["archiver"] = [{"seconds": 3, **full}, {"seconds": 0.05, **full}]
    pod.plans["host"] = {"seconds": 5}
    pod.plans["finish"] = {"code": 1, "says": no_room(pod.shared)}
    assert pod.run(when_full="continue") == 1
    assert pod.events("host") == [("started", None), ("exited", 0)]
    assert len(pod.events("archiver")) >= 4


def test_nobody_waits_for_room_once_the_model_is_through(pod):
    """With `whenFull: continue` the run ends after the model, although finish would wait for the worker."""
    full = {"code": 1, "says": no_room(pod.shared)}
    pod.plans["archiver"] = [{"seconds": 2, **full}, {"seconds": 0.05, **full}]
    pod.plans["host"] = {"seconds": 3}
    pod.plans["finish"] = {"seconds": 300}
    runner = pod.begin(when_full="continue")
    code, said = pod.finished()
    assert runner.returncode == code == 1
    assert f"  {no_room(pod.shared)} with --resume\n" in said
    assert pod.events("host") == [("started", None), ("exited", 0)]
