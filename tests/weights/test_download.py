"""Fetching a model: from a hub that breaks, from a folder, or not at all; every byte verified."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from asysi.contract.errors import ConfigError
from asysi.weights import download_model
from asysi.weights.commands import app
from asysi.weights.run.download import RECORD_FILE, default_folder, download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"model.layers.0.mlp.up_proj.weight": np.arange(60_000, dtype="f4").reshape(300, 200)})


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """Stands in for the hub: the paths that fetching a model uses. It can be told to fail."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {
            "model.safetensors": WEIGHTS,
            "config.json": b'{"model_type": "llama"}',
            "run.py": b"no",
            "pytorch_model.bin": b"pickle",
        }
        self.failing = 0
        """Requests to answer with 503 first."""
        self.cut = 0
        """Bodies of the weights to break off in the middle."""
        self.empty = False
        """Whether no file can be had, only the listing."""
        self.lie = False
        """Whether the weights that are sent are others than the listing says."""
        self.asked = []
        self.fetched = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.asked.append(path)
        if hub.failing:
            hub.failing -= 1
            return self._send(503, b"later")
        if path.startswith("/api/models/"):
            return self._listing(path)
        name = path.rpartition("/")[2]
        if hub.empty:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if name not in hub.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._file(name)

    def _listing(self, path):
        hub = self.server
        revision = path.partition("/revision/")[2]
        if "/none" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision == "gone":
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            return self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"})
        siblings = []
        for name, data in hub.files.items():
            one = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(".safetensors"):
                one["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                }
            siblings.append(one)
        body = {
            "id": "owner/tiny",
            "sha": COMMIT,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _tree(self):
        entries = []
        for name, data in self.server.files.items():
            one = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
            if name.endswith(".safetensors"):
                one["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(one)
        return entries

    def _file(self, name):
        hub, data = self.server, self.server.files[name]
        heavy = name.endswith(".safetensors")
        etag = hashlib.sha256(data).hexdigest() if heavy else git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if hub.lie and heavy:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body, status = data[start:], 206 if start else 200
        if self.command == "GET":
            hub.fetched.append((name, start))
            if hub.cut and heavy:
                hub.cut -= 1
                self._head(status, len(body), headers)
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return self.connection.shutdown(2)
        return self._send(status, body, headers)

    def _head(self, status, length, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, status, body, headers=None):
        self._head(status, len(body), headers)
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def mirror():
    """A second hub."""
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and a client that is not told to stay offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 1024
    )  # what is smaller is not kept when it breaks off
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


def fetch(hub, folder, **options):
    return download(
        "owner/tiny",
        folder,
        options.pop("revision", None),
        endpoint=hub.address,
        pause=lambda _seconds: None,
        **options,
    )


def test_a_model_is_fetched_and_verified(hub, tmp_path):
    """Weights and configuration come, by their hashes; code and pickles do not; commit and log are kept."""
    done = fetch(hub, tmp_path / "m", revision="main")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(done.files) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "m" / "run.py").exists()
    assert not (tmp_path / "m" / "pytorch_model.bin").exists()
    assert done.revision == COMMIT
    assert done.files["model.safetensors"].digest == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert done.files["config.json"].digest.startswith("git:")
    (log,) = tmp_path.glob("download_*.log")
    assert f"fetched owner/tiny at {COMMIT}" in log.read_text()


def test_what_is_verified_is_not_fetched_again(hub, tmp_path):
    """The second time only the listing is asked for; a file that was touched is hashed and fetched anew."""
    fetch(hub, tmp_path / "m")
    hub.fetched.clear()
    assert fetch(hub, tmp_path / "m").fetched is False
    assert not hub.fetched
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json.*the hub says git:"):
        fetch(hub, tmp_path / "m")
    assert fetch(hub, tmp_path / "m").fetched
    assert (tmp_path / "m" / "config.json").read_bytes() == hub.files["config.json"]


def test_a_broken_connection_goes_on_where_it_ended(hub, tmp_path):
    """A body that breaks off is continued by a range, not fetched from the start."""
    hub.cut = 1
    fetch(hub, tmp_path / "m")
    starts = [start for name, start in hub.fetched if name == "model.safetensors"]
    assert starts[0] == 0
    assert starts[-1] > 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_hub_that_is_busy_is_asked_again(hub, tmp_path):
    """503 is tried again, with growing pauses, and the log says so."""
    hub.failing = 3
    waited = []
    download("owner/tiny", tmp_path / "m", endpoint=hub.address, pause=waited.append)
    assert waited == sorted(waited)
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_a_hub_that_stays_away(tmp_path, monkeypatch):
    """Without a network the error names the number of attempts and what to do."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    waited = []
    with pytest.raises(ConfigError, match=r"failed 3 times.*--endpoint; what was fetched is kept"):
        download("owner/tiny", tmp_path / "m", endpoint="http://127.0.0.1:9", retries=2, pause=waited.append)
    assert waited == [1.0, 2.0]


def test_other_bytes_than_promised(hub, tmp_path):
    """A file with another hash than the listing says is set aside, and the error names both hashes."""
    hub.lie = True
    with pytest.raises(ConfigError, match=r"the hub says sha256:.*set aside as model.safetensors.corrupt"):
        fetch(hub, tmp_path / "m")
    assert not (tmp_path / "m" / "model.safetensors").exists()
    assert not (tmp_path / "m" / RECORD_FILE).exists()


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [("owner/none", None, "no such model or revision"), ("owner/tiny", "gone", "no such model or revision")],
)
def test_what_the_hub_does_not_have(hub, tmp_path, model, revision, said):
    """A model or a revision that is not there is refused at once."""
    waited = []
    with pytest.raises(ConfigError, match=said):
        download(model, tmp_path / "m", revision, endpoint=hub.address, pause=waited.append)
    assert not waited
    assert not (tmp_path / "m").exists()


def test_a_model_of_pickles(hub, tmp_path):
    """A model that has only pickles is refused with the way out, and nothing is fetched."""
    del hub.files["model.safetensors"]
    del hub.files["config.json"]
    with pytest.raises(ConfigError, match="a pickle is not fetched"):
        fetch(hub, tmp_path / "m")
    assert not hub.fetched


def test_offline(hub, tmp_path):
    """Offline verifies what is there: whole, changed, gone, or never fetched."""
    fetch(hub, tmp_path / "m")
    hub.asked.clear()
    done = download("owner/tiny", tmp_path / "m", offline=True)
    assert (done.revision, len(done.files)) == (COMMIT, 2)
    assert not hub.asked
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="the hub says sha256"):
        download("owner/tiny", tmp_path / "m", offline=True)
    with pytest.raises(ConfigError, match="is gone"):
        download("owner/tiny", tmp_path / "m", offline=True)
    with pytest.raises(ConfigError, match="offline nothing is fetched"):
        download("owner/other", tmp_path / "n", offline=True)


def test_a_local_folder(tmp_path):
    """A folder is copied, hashed, and copied again only where it changed."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(WEIGHTS)
    (source / "config.json").write_text("{}")
    (source / "evil.bin").write_bytes(b"pickle")
    assert download_model(str(source), tmp_path / "m") == str(tmp_path / "m")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == [
        RECORD_FILE, "config.json", "model.safetensors",
    ]  # fmt: skip
    assert download(str(source), tmp_path / "m").fetched is False
    (source / "config.json").write_text('{"a": 1}')
    assert download(str(source), tmp_path / "m").fetched is True
    assert (tmp_path / "m" / "config.json").read_text() == '{"a": 1}'
    (source / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="the weights are missing"):
        download(str(source), tmp_path / "m")


def test_where_models_lie(tmp_path):
    """A hub model lies under owner/name; a local folder under what tells it from others."""
    (tmp_path / "minilm" / "model").mkdir(parents=True)
    assert default_folder(tmp_path, "owner/name") == tmp_path / "owner" / "name"
    assert default_folder(tmp_path, str(tmp_path / "minilm" / "model")) == tmp_path / "minilm"


def test_the_command(hub, tmp_path):
    """The command says where the files are, and the second time that they were verified already."""
    arguments = ["download", "owner/tiny", "-o", str(tmp_path), "--endpoint", hub.address]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert f"{tmp_path / 'owner' / 'tiny'}: 2 files" in first.output
    assert "fetched" in first.output
    assert "verified already" in second.output


def told(file):
    return json.loads(file.read_text())


def test_plan_and_result(hub, tmp_path):
    """Beside the folder lie the plan, with how each step ended, and the result: shards, bytes, every hash."""
    fetch(hub, tmp_path / "m", revision="main")
    plan, result = told(tmp_path / "m.plan.json"), told(tmp_path / "m.result.json")
    assert [(step["name"], step["state"]) for step in plan["steps"]] == [
        ("list", "done"), ("fetch", "done"), ("check", "done"),
    ]  # fmt: skip
    assert all(step["does"] and step["done_when"] for step in plan["steps"])
    inputs = plan["inputs"]
    assert (inputs["model"], inputs["revision"]) == ("owner/tiny", "main")
    assert {"device", "precision"} <= inputs.keys()
    assert {"goal", "outputs", "fallbacks"} <= plan.keys()
    assert result["shards"] == {"expected": 1, "found": 1, "missing": []}
    assert (result["requested_revision"], result["resolved_revision"]) == ("main", COMMIT)
    assert result["bytes"] == len(WEIGHTS) + len(hub.files["config.json"])
    digest = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert result["files"]["model.safetensors"] == {
        "bytes": len(WEIGHTS), "hash": digest, "expected_hash": digest,
    }  # fmt: skip
    fetch(hub, tmp_path / "m")
    assert told(tmp_path / "m.plan.json")["steps"][1]["state"] == "skipped"


def test_a_model_without_all_its_shards(tmp_path):
    """Shards that the index promises and nobody has are in the result, on stderr, and exit code 1."""
    source = tmp_path / "source"
    source.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (source / names[0]).write_bytes(save({"a": np.ones(3)}))
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    done = CliRunner().invoke(app, ["download", str(source), "-o", str(tmp_path / "models")])
    assert done.exit_code == 1
    assert f"{names[1]}: the index names it and it is not there" in done.stderr
    result = told(tmp_path / "models" / "source.result.json")
    assert result["shards"] == {"expected": 2, "found": 1, "missing": [names[1]]}
    steps = told(tmp_path / "models" / "source.plan.json")["steps"]
    assert [step["state"] for step in steps] == ["done", "done", "failed"]


@pytest.mark.parametrize("fault", ["away", "empty", "lie"])
def test_a_mirror_goes_on(hub, mirror, tmp_path, fault):
    """An endpoint that is away, has no files or sends others is left for the mirror, and a note says so."""
    address = "http://127.0.0.1:9" if fault == "away" else hub.address
    hub.empty, hub.lie = fault == "empty", fault == "lie"
    done = download(
        "owner/tiny", tmp_path / "m", endpoint=address, mirrors=[mirror.address], retries=1,
        pause=lambda _seconds: None,
    )  # fmt: skip
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert not list((tmp_path / "m").glob("*.corrupt"))
    assert done.source == mirror.address
    (note,) = told(tmp_path / "m.result.json")["notes"]
    assert mirror.address in note


def test_a_mirror_cannot_change_what_was_promised(hub, mirror, tmp_path):
    """Files of a mirror must have the hashes of the endpoint that gave the listing."""
    hub.empty = True
    mirror.files["config.json"] = b"{}"
    with pytest.raises(ConfigError, match=r"config.json: it has git:.*the hub says git:"):
        fetch(hub, tmp_path / "m", mirrors=[mirror.address], retries=0)


def test_another_revision(hub, tmp_path):
    """Where the revision does not exist the next one named is taken, and every record says so."""
    done = fetch(hub, tmp_path / "m", revision="gone", fallback_revisions=["main"])
    assert done.revision == COMMIT
    (note,) = done.notes
    assert note.startswith(f"taken: revision main of {hub.address}, for asking for owner/tiny at gone: ")
    assert told(tmp_path / "m.result.json")["requested_revision"] == "gone"
    with pytest.raises(ConfigError, match="no such model or revision"):
        fetch(hub, tmp_path / "n", revision="gone")


@pytest.mark.parametrize("fault", ["empty", "none", "offline"])
def test_nothing_is_left_of_a_failed_download(hub, tmp_path, fault):
    """Where nothing of a model came there is no folder, plan or log; the folder of the models is gone too."""
    hub.empty = fault == "empty"
    with pytest.raises(ConfigError):
        download(
            "owner/none" if fault == "none" else "owner/tiny", tmp_path / "models" / "owner" / "tiny",
            endpoint=hub.address, retries=0, offline=fault == "offline", pause=lambda _seconds: None,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_gone_on_with(hub, tmp_path):
    """What came of a file before the end is kept, and the plan says what failed; no old result stands."""
    fetch(hub, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    hub.lie = True
    with pytest.raises(ConfigError):
        fetch(hub, tmp_path / "m", retries=0)
    steps = told(tmp_path / "m.plan.json")["steps"]
    assert [step["state"] for step in steps] == ["done", "failed", "planned"]
    assert "the hub says" in steps[1]["note"]
    assert not (tmp_path / "m.result.json").exists()


def test_run_says_what_was_taken_instead(hub, tmp_path):
    """A fall-back of the download is a note of the run: on stderr and in run_meta.json."""
    done = CliRunner().invoke(
        app,
        ["run", "owner/tiny", "-o", str(tmp_path / "out"), "--models", str(tmp_path / "m"), "--endpoint",
         hub.address, "--revision", "gone", "--fallback-revision", "main"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "note: taken: revision main" in done.stderr
    meta = told(tmp_path / "out" / "run_meta.json")
    assert (meta["requested_revision"], meta["resolved_revision"]) == ("gone", COMMIT)
    assert "taken: revision main" in meta["notes"][0]


def test_what_came_of_a_failed_download_is_kept(hub, tmp_path):
    """Files that came before the failure stay, wherever the folder is, with plan and log beside it."""
    folder = tmp_path / ".cache" / "owner" / "tiny"
    hub.lie = True
    with pytest.raises(ConfigError, match="set aside"):
        fetch(hub, folder, retries=0)
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]
    assert (folder.parent / "tiny.plan.json").exists()
    (log,) = folder.parent.glob("download_*.log")
    assert "set aside" in log.read_text()
    hub.lie = False
    fetch(hub, folder)
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        RECORD_FILE, "config.json", "model.safetensors",
    }  # fmt: skip
