"""Bad input: a clear sentence, exit code 2, nothing left behind."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml


def _run(path: Path, output: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "asysi.cli", "run", str(path), "--output", str(output), "--plain"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _refused(path: Path, output: Path, *words: str) -> None:
    existed = output.exists()
    done = _run(path, output)
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    for word in words:
        assert word in said, f"{word!r} is not in:\n{said}"
    assert output.exists() == existed, "the output folder was left behind"
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    assert [p for p in Path("/dev/shm").glob(f"asysi-{name}-*") if p.is_dir()] == []


def test_unknown_key(scan: Callable, tmp_path: Path) -> None:
    """An unknown key is refused with its file, its path and the nearest known key."""
    path = scan("key", lambda spec: spec["capture"].update(hookpoint=["x"]))
    _refused(path, tmp_path / "out", "key.yaml", "spec.capture.hookpoint", "hookPoints")


def test_glob_without_match(scan: Callable, tmp_path: Path) -> None:
    """A glob that matches nothing is refused with names near to it."""
    path = scan("glob", lambda spec: spec["capture"].update(hookPoints=["encoder.layers.*.output"]))
    _refused(path, tmp_path / "out", "encoder.layers.*.output", "encoder.layer.0.output")


def test_missing_model(scan: Callable, tmp_path: Path) -> None:
    """A model that is not there is named."""
    path = scan("missing", lambda spec: spec["model"].update(uri=f"file://{tmp_path}/nowhere"))
    _refused(path, tmp_path / "out", f"{tmp_path}/nowhere")


def test_wrong_hash(scan: Callable, model: Path, tmp_path: Path) -> None:
    """Weights with another hash than the spec's are refused with both hashes."""
    real = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    path = scan("hash", lambda spec: spec["model"].update(sha256="0" * 64))
    _refused(path, tmp_path / "out", "0" * 64, real)


def test_pickle(scan: Callable, model: Path, tmp_path: Path) -> None:
    """A model folder with only a pickle is refused, and the pickle is not opened."""
    folder = tmp_path / "pickled"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    path = scan("pickle", lambda spec: spec["model"].update(uri=f"file://{folder}"))
    _refused(path, tmp_path / "out", "pytorch_model.bin", "safetensors")
    assert not canary.exists()


def test_malformed_line(scan: Callable, tmp_path: Path) -> None:
    """A malformed line is refused with its file and number."""
    data = tmp_path / "broken.jsonl"
    data.write_text('{"text": "ban del fir gos kut lon man net"}\n{"text": "ban", \n')
    path = scan("line", lambda spec: spec["data"].update(uri=f"jsonl://{data}"))
    _refused(path, tmp_path / "out", "broken.jsonl", "line 2")


def test_ring_too_small(scan: Callable, tmp_path: Path) -> None:
    """A capture ring that cannot hold a step is refused with the field to raise."""

    def change(spec: dict) -> None:
        spec["capture"]["size"] = "2Mi"
        spec["workload"]["scan"]["batchSize"] = 512

    _refused(scan("ring", change), tmp_path / "out", "capture.size")


def test_shm_too_small(scan: Callable, tmp_path: Path) -> None:
    """Rings that /dev/shm cannot hold are refused before anything is written."""

    def change(spec: dict) -> None:
        spec["bus"]["size"] = "4Ti"
        spec["sae"]["memory"] = "8Ti"
        spec["resources"] = {"prepare": {"memory": "8Ti"}}

    _refused(scan("shm", change), tmp_path / "out", "/dev/shm")


def test_output_not_writable(scan: Callable, tmp_path: Path) -> None:
    """An output folder that cannot be made is named."""
    (tmp_path / "file").write_text("")
    _refused(scan("output"), tmp_path / "file" / "out", str(tmp_path / "file"))


def test_two_of_one_name(scan: Callable, start: Callable, tmp_path: Path) -> None:
    """A second run of a name that is running is refused; the first is not disturbed."""
    path = scan("twice")
    first = start(path)
    first.worker("asysi.hosts.prepare")
    done = _run(path, tmp_path / "second")
    assert done.returncode == 2, done.stdout + done.stderr
    assert first.name in done.stdout + done.stderr
    assert not (tmp_path / "second").exists()
    assert first.finish() == 0, first.text()


def test_folder_without_permission(scan: Callable, tmp_path: Path, program: Callable) -> None:
    """An output folder without permission to write is refused."""
    if os.geteuid() == 0:
        program("setpriv")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(locked, 65534, 65534)
        locked.chmod(0o555)
        path = scan("locked")
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        command += [
            sys.executable,
            "-m",
            "asysi.cli",
            "run",
            str(path),
            "--output",
            str(locked / "out"),
            "--plain",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert str(locked) in done.stdout + done.stderr
    else:
        locked.chmod(0o555)
        _refused(scan("locked"), locked / "out", str(locked))
