"""The command line: exit codes, messages, and what it does not import."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asysi.cli import commands, main, run_profile
from asysi.cli.tables import print_check
from asysi.contract.spec import ScanExperiment

ROOT = Path(__file__).parents[2]
Tree = dict[str, Any]


def asysi(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a process."""
    command = [sys.executable, "-m", "asysi.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def leaves_with(*arguments: str | Path, program: Callable[[list[str]], None] = main) -> object:
    """Run a command line here and return its exit code."""
    with pytest.raises(SystemExit) as leaving:
        program([str(argument) for argument in arguments])
    return leaving.value.code


@pytest.fixture
def file(tmp_path: Path, minimal: Callable[..., Tree]) -> Path:
    """Return the file of an experiment that is accepted."""
    path = tmp_path / "scan.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    return path


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a table, filled by the test, of what stands behind the doors of the commands."""
    table: dict[str, Any] = {}
    real = commands.import_lazily
    monkeypatch.setattr(
        commands, "import_lazily", lambda module, name: table.get(module) or real(module, name)
    )
    return table


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["ring", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """Help answers without torch, numpy, YAML, rich, the schema, the runner, or any worker."""
    script = (
        "import sys\nfrom asysi.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as leaving: assert leaving.code == 0\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.partition("MODULES")
    assert said.strip()
    loaded = set(modules.split())
    assert (
        not {"torch", "numpy", "yaml", "rich", "kubernetes", "kopf", "asysi_operator", "asysi_ring"} & loaded
    )
    light = {"asysi.cli", "asysi.cli.commands", "asysi.cli.groups", "asysi.contract", "asysi.contract.errors"}
    assert {name for name in loaded if name.startswith("asysi.")} <= light | {"asysi.contract.runtime"}


def test_every_command_shows_an_example() -> None:
    """The help of each command that takes files shows how it is used."""
    for name in ("run", "check", "render"):
        assert re.search(rf"Examples:\n +asysi {name} \S+\.yaml", asysi(name, "--help").stdout), name


def test_bad_configuration_ends_in_sentences_and_exit_code_2(tmp_path: Path, file: Path) -> None:
    """Everything wrong stands on stderr, a sentence a line, and no traceback."""
    over = tmp_path / "over.yaml"
    over.write_text("spec:\n  buss: {}\n  capture: {positions: {mode: last}}\n")
    done = asysi("run", "-f", file, "-f", over)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == f"{over}:2: spec.buss is not a known key: did you mean bus?"
    assert lines[1].startswith(f"{over}:3: spec.capture.positions.mode last is not available yet")
    assert len(lines) == 2


def test_wrong_usage_ends_in_2(file: Path) -> None:
    """An unknown command or option, or no file, says so."""
    for arguments in (["rnu"], ["run", "--nope"], ["run"], ["render", str(file), "-o", "xml"]):
        done = asysi(*arguments)
        assert done.returncode == 2
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_profile_lies_over_the_base_beside_it(tmp_path: Path, file: Path, behind: dict[str, Any]) -> None:
    """`asys-i-run --config FOLDER/profile.yaml` is `asysi run -f FOLDER/base.yaml -f FOLDER/profile.yaml`."""
    file.rename(tmp_path / "base.yaml")
    profile = tmp_path / "profile.yaml"
    profile.write_text("spec: {bus: {shards: 7}}\n")
    seen: list[ScanExperiment] = []
    behind["asysi_operator.local"] = lambda experiment, **_: seen.append(experiment) or 0
    assert leaves_with("--config", profile, program=run_profile) == 0
    assert leaves_with("--config", tmp_path / "base.yaml", program=run_profile) == 0
    assert [experiment.spec.bus.shards for experiment in seen] == [7, 2]


def test_a_profile_that_is_wrong_ends_in_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`asys-i-run` calls itself by its name, and turns errors into sentences as `asysi` does."""
    assert leaves_with("--help", program=run_profile) == 0
    assert "Usage: asys-i-run [OPTIONS]" in capsys.readouterr().out
    missing = tmp_path / "profile.yaml"
    assert leaves_with("--config", missing, program=run_profile) == 2
    assert str(missing.with_name("base.yaml")) in capsys.readouterr().err


def test_run_passes_on_what_it_was_told(tmp_path: Path, file: Path, behind: dict[str, Any]) -> None:
    """Options reach the runner, files and settings are merged, and its exit code becomes ours."""
    seen: list[tuple[int, dict[str, Any]]] = []

    def run(experiment: ScanExperiment, **options: Any) -> int:
        seen.append((experiment.spec.bus.shards, options))
        return 1

    behind["asysi_operator.local"] = run
    assert (
        leaves_with(
            "run", file, "--set", "spec.bus.shards=5", "--output", tmp_path, "--plain", "--kill-once", "sae"
        )
        == 1
    )
    told = {"output": tmp_path, "overwrite": False, "resume": False, "plain": True, "kill_once": "sae"}
    assert seen == [(5, told)]


def test_ctrl_c_ends_in_130(file: Path, behind: dict[str, Any]) -> None:
    """An interrupt that nobody below has dealt with is not a traceback."""

    def run(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    behind["asysi_operator.local"] = run
    assert leaves_with("run", file) == 130


def test_a_missing_package_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command whose package is not installed says what to install."""
    monkeypatch.setitem(sys.modules, "asysi.hosts.check", None)
    monkeypatch.setattr("asysi.contract.errors.import_module", _without_torch)
    assert leaves_with("check", file) == 2
    assert capsys.readouterr().err == "this command needs the package torch: pip install 'asysi[workers]'\n"


def _without_torch(module: str) -> Any:
    import importlib

    if module == "asysi.hosts.check":
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return importlib.import_module(module)


def test_render_prints_objects(
    file: Path, behind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Objects come as YAML documents or as one JSON List, the same in both."""
    objects = [
        {"kind": "ConfigMap", "data": {"a.json": "{\n  1\n}\n"}},
        {"kind": "Job", "spec": {"n": 1, "t": "yes"}},
    ]
    behind["asysi_operator.manifests"] = lambda _: objects
    assert leaves_with("render", file) == 0
    text = capsys.readouterr().out
    assert list(yaml.safe_load_all(text)) == objects
    assert "a.json: |" in text
    assert leaves_with("render", file, "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"apiVersion": "v1", "kind": "List", "items": objects}


def test_check_prints_what_matches_and_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Hook points, documents and rings stand on stdout; problems on stderr."""
    from asysi.capture.slots import plan_slots
    from asysi.hosts.check import CheckReport
    from asysi.hosts.rings import plan_rings
    from asysi.model.points import HookPoint

    experiment = ScanExperiment.model_validate(yaml.safe_load((ROOT / "configs/base.yaml").read_text()))
    point = HookPoint("encoder.layer.0.output", "blocks.0.hook_resid_post", (32, 128, 384), "bfloat16")
    print_check(
        CheckReport(
            points=[point],
            documents=1200,
            held_out=120,
            rings=plan_rings(experiment.spec, 1),
            slots=plan_slots([(1, 768)], 32 * 128, 64 << 20),
            problems=["no."],
        )
    )
    said = capsys.readouterr()
    assert re.search(r"encoder\.layer\.0\.output +blocks\.0\.hook_resid_post +384 +bfloat16", said.out)
    assert "1,200 distinct documents: 120 held out" in said.out
    assert "128Mi: 2 shards × 256 chunks of 256Ki, read by archiver, sae" in said.out
    assert (
        "8 × 1 calls a step = 8 slots × 3Mi (4096 rows) = 24Mi, within spec.capture.size = 64Mi" in said.out
    )
    assert said.err == "no.\n"


def test_check_with_problems_ends_in_2(file: Path, behind: dict[str, Any]) -> None:
    """What would be refused when it runs is refused when it is checked."""
    from asysi.hosts.check import CheckReport

    behind["asysi.hosts.check"] = lambda _: CheckReport(problems=["no."])
    assert leaves_with("check", file) == 2
    behind["asysi.hosts.check"] = lambda _: CheckReport()
    assert leaves_with("check", file) == 0


def publish(writer: Any, packets: int) -> None:
    """Publish packets of 8 rows at layer.0."""
    import numpy as np

    from asysi.bus.packet import HEADER_DTYPE, ROW_DTYPE

    header, rows = np.zeros(1, HEADER_DTYPE), np.zeros(8, ROW_DTYPE)
    header["account"], header["width"] = writer.account("layer.0"), 16
    values = np.zeros((8, 16), np.float32)
    for _ in range(packets):
        assert writer.publish_block(0, header, rows, values.ctypes.data, 64, None, 8, 0, 1)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Path]:
    """A ring in use: three packets and a drop, one packet consumed, one pinned."""
    import asysi_ring

    folder = tmp_path / "bus"
    asysi_ring.create(
        str(folder), shards=2, chunks=64, chunk_bytes=65536, readers=["sae"], policy="overwrite"
    )
    with asysi_ring.Writer(str(folder)) as writer, asysi_ring.Reader(str(folder), "sae") as reader:
        publish(writer, 3)
        writer.book(0, seen=2, dropped=2, reason=1)
        first, second = reader.pull(2)
        reader.consumed(first)
        first.release()
        yield folder
        second.release()


def test_ring_inspect_shows_a_live_ring(ring: Path) -> None:
    """Geometry, memory, generations, cursors, lag, pins, books and drops of a ring at work."""
    import asysi_ring

    with asysi_ring.Control(str(ring)) as control:
        abi = re.escape(str(control.geometry()["abi"]))
    said = asysi("ring", "inspect", str(ring)).stdout
    assert re.search(rf"ring +2 × 64 chunks of 64Ki \(47 unread per shard\), overwrite, ABI {abi}", said)
    assert re.search(r"memory +8Mi of \w+ in pages of", said)
    assert re.search(r"writer +attached, generation 1; 8Mi mapped, populated", said)
    assert re.search(r"dropped +ring_full 2 rows", said)
    assert re.search(r"sae +attached +1 +4\.3% +1 of 32 +8Mi mapped, populated", said)
    assert re.search(r"^ +0 +3 +0 +0 +sae +1 +2 +1 +$", said, re.MULTILINE)
    assert "1 shard has had no packet yet" in said
    assert re.search(r"layer\.0 +26 +24 +0 +ring_full 2 +even", said)
    assert re.search(r"layer\.0 +8 +0 +0 +0", said)
    assert asysi("ring", "inspect", str(ring / "control")).stdout.startswith("ring ")


def test_ring_inspect_shows_open_claims(tmp_path: Path) -> None:
    """Claims under way and how often several found no neighbouring chunks, by shard; no quiet shard."""
    import numpy as np

    import asysi_ring
    from asysi.bus.packet import HEADER_DTYPE

    folder = tmp_path / "capture"
    asysi_ring.create(str(folder), shards=3, chunks=8, chunk_bytes=4096, readers=["hook"], policy="drop_new")
    with asysi_ring.Writer(str(folder)) as writer:
        headers = np.zeros(3, HEADER_DTYPE)
        headers["account"], headers["width"] = writer.account("layer.0"), 16
        claims = [writer.claim_many(1, headers, [1, 1, 1], 0) for _ in range(2)]
        claims[0][1].abort()  # three chunks are left, and they are not neighbours
        claims.append(writer.claim_many(1, headers, [1, 1, 1], 0))
        said = asysi("ring", "inspect", str(folder)).stdout
        assert re.search(r"claims +8 open; 1 time scattered", said)
        assert re.search(r"^ +1 +0 +8 +1 +hook +0 +0 +0 +$", said, re.MULTILINE)
        assert "2 shards have had no packet yet" in said
        del claims
    assert re.search(r"claims +0 open; 1 time scattered", asysi("ring", "inspect", str(folder)).stdout)


def test_a_ring_in_use_is_not_reset(ring: Path) -> None:
    """Whoever is attached is named, nothing is forgotten, and the exit code is 2."""
    refused = asysi("ring", "reset", str(ring), "--yes")
    assert refused.returncode == 2
    assert "the producer of the ring" in refused.stderr
    assert "Stop the processes using it" in refused.stderr
    assert "ring_full 2 rows" in asysi("ring", "inspect", str(ring)).stdout


def test_ring_reset_empties_a_ring_that_nobody_uses(tmp_path: Path) -> None:
    """Where nobody can be asked it wants --yes before it forgets rows; afterwards the ring is as new."""
    import asysi_ring

    folder = tmp_path / "bus"
    asysi_ring.create(str(folder), shards=1, chunks=64, chunk_bytes=4096, readers=["sae"], policy="overwrite")
    with asysi_ring.Writer(str(folder)) as writer:
        publish(writer, 7)
    refused = asysi("ring", "reset", str(folder))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "56 published rows at 1 hook points. Use --yes" in refused.stderr
    done = asysi("ring", "reset", str(folder), "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "is empty; deleted: 56 published rows" in done.stdout
    said = asysi("ring", "inspect", str(folder)).stdout
    assert "absent, generation 0" in said
    assert "No hook point has been registered yet." in said
    assert asysi("ring", "reset", str(folder)).returncode == 0


def test_what_is_no_ring_is_refused_in_a_sentence(tmp_path: Path, ring: Path) -> None:
    """A missing path, another file, a folder without a ring, a pickle called control: what and why."""
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"\x80\x04" * 4096)
    (tmp_path / "pickled").mkdir()
    shutil.copy(pickle, tmp_path / "pickled" / "control")
    for path, why in {
        tmp_path / "nothing": "does not exist",
        pickle: "is a file: name the folder",
        tmp_path / "pickled": "is not a control file of a ring",
        ring.parent / "bus" / "..": "there are some below it",
    }.items():
        for command in ("inspect", "reset"):
            refused = asysi("ring", command, str(path))
            assert (refused.returncode, refused.stdout) == (2, "")
            assert why in refused.stderr
            assert refused.stderr.count("\n") == 1


def test_mscan_is_found_when_asked_for() -> None:
    """The archive's commands are listed by `asysi mscan --help`, and an unknown one is refused."""
    listed = asysi("mscan", "--help").stdout
    assert all(
        re.search(rf"^  {name} ", listed, re.MULTILINE) for name in ("info", "verify", "recover", "export")
    )
    assert asysi("mscan", "inof", "x").returncode == 2


@pytest.mark.parametrize("profile", ["profile_hpc.yaml", "profile_consumer.yaml"])
def test_the_profiles_do_what_they_say(profile: str) -> None:
    """Over base.yaml, each profile is accepted and chooses its mode."""
    from asysi.contract.loading import load

    mode = "HPC" if "hpc" in profile else "CONSUMER"
    assert load([ROOT / "configs/base.yaml", ROOT / "configs" / profile]).spec.mode == mode
