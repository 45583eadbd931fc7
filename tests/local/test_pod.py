"""The pod as processes: order, restarts in place, attempts, and the end in band."""

import json

import pytest

from asysi_operator.local import backoff


def test_order(pod):
    """Prepare ends first, the sidecars start side by side, host and finish when all of them are ready."""
    pod.plans["archiver"] = {"ready": 60, "seconds": 1.5}  # it has started by having ended
    assert pod.run() == 0
    started = [line.split()[0] for line in pod.journal() if line.endswith(" started")]
    assert started[0] == "prepare"
    assert set(started[1:4]) == {"archiver", "sae", "hook"}
    assert set(started[4:]) == {"host", "finish"}
    journal = pod.journal()
    assert all(journal.index("prepare ended 0") < journal.index(f"{name} started") for name in started[1:])
    done = journal.index("archiver ended 0")
    assert all(journal.index(f"{name} started") < done for name in ("sae", "hook"))
    assert all(journal.index(f"{name} started") > done for name in ("host", "finish"))


def test_nothing_is_left_but_the_output(pod):
    """After a good end there are no rings, no scratch folder, no lock and no process, but logs and events."""
    assert pod.run() == 0
    assert pod.leftovers() == []
    assert pod.processes() == []
    assert {path.name for path in pod.output.iterdir()} == {"events.jsonl", "experiment.yaml", "logs"}
    assert pod.events("sae") == [("started", None), ("exited", 0)]


def test_the_experiment_is_kept(pod):
    """The output holds the experiment as it was run, and it reads back as the same."""
    import yaml

    from asysi.contract.spec import ScanExperiment

    pod.run()
    text = (pod.output / "experiment.yaml").read_text()
    assert ScanExperiment.model_validate(yaml.safe_load(text)).spec.capture.size == "1Mi"


def test_environment(pod):
    """A container is told folders of its own run, a port, its memory limit, and to listen here only."""
    names = ["ASYSI_OUTPUT", "ASYSI_ATTEMPT", "ASYSI_MEMORY", "ASYSI_BIND", "OMP_NUM_THREADS"]
    pod.plans["sae"] = {"environment": names}
    assert pod.run() == 0
    noted = dict(line.removeprefix("sae ").split("=", 1) for line in pod.journal() if "=" in line)
    expected = [str(pod.output), "0", str(3 * 2**30), "127.0.0.1", "1"]
    assert noted == dict(zip(names, expected, strict=True))


def test_a_crashed_sidecar_comes_back(pod):
    """A sidecar that crashes is started again in the same pod, and the run ends well."""
    pod.plans["sae"] = [{"seconds": 0.1, "code": 1}, {}]
    pod.plans["host"] = {"seconds": 1.0}
    assert pod.run() == 0
    assert pod.events("sae") == [("started", None), ("exited", 1), ("restarted", None), ("exited", 0)]
    assert len(pod.events("host")) == 2
    assert {path.name for path in (pod.output / "logs").glob("sae*")} == {"sae.log", "sae.1.log"}


def test_a_sidecar_that_is_done_stays_so(pod):
    """A sidecar that ends with 0 is not started again."""
    pod.plans["archiver"] = {"seconds": 0.1}
    pod.plans["host"] = {"seconds": 0.8}
    assert pod.run() == 0
    assert pod.events("archiver") == [("started", None), ("exited", 0)]


def test_a_hung_sidecar_is_killed_and_comes_back(pod):
    """A sidecar whose liveness fails, and that does not hear SIGTERM, is killed and started again."""
    pod.plans["hook"] = [{"hangs": 0.2}, {}]
    pod.plans["host"] = {"seconds": 2.0}
    assert pod.run() == 0
    assert [event for event, _ in pod.events("hook")] == [
        "started",
        "killed",
        "exited",
        "restarted",
        "exited",
    ]


def test_sidecars_stop_in_reverse_order(pod):
    """Sidecars that outlive the main containers get SIGTERM from the last to the first, one by one."""
    for name in ("archiver", "sae", "hook"):
        pod.plans[name] = {"stays": True}
    assert pod.run() == 0
    ended = [line for line in pod.journal() if line.endswith("ended 143")]
    assert ended == ["hook ended 143", "sae ended 143", "archiver ended 143"]


def test_a_deaf_sidecar_is_killed(pod):
    """A sidecar that ignores SIGTERM is killed when the grace period is over; the run ends all the same."""
    pod.plans["sae"] = {"stays": True, "deaf": True}
    assert pod.run(gracePeriodSeconds=1) == 0
    assert pod.events("sae")[-1] == ("exited", 137)


def test_a_hopeless_sidecar_ends_the_run(pod, monkeypatch, capsys):
    """A sidecar that crashes again and again fails the run, and the message says what its log says."""
    monkeypatch.setattr(backoff, "LONGEST", 0.01)
    monkeypatch.setattr(backoff, "MAX_CRASHES", 4)
    pod.plans["sae"] = {"seconds": 0, "code": 7, "says": "the checkpoint is torn"}
    assert pod.run() == 1
    said = capsys.readouterr().err
    assert "sae has crashed 4 times in a row" in said
    assert "the checkpoint is torn" in said
    assert "host started" not in pod.journal()


def test_a_dead_host_is_a_new_attempt(pod):
    """A host that dies is tried again with the next attempt's number and fresh rings, in the same output."""
    pod.plans["host"] = [{"seconds": 0.1, "code": 1}, {"seconds": 0.1, "environment": ["ASYSI_ATTEMPT"]}]
    pod.plans["finish"] = [{"seconds": 0.3, "code": 1}, {}]
    assert pod.run() == 0
    assert "host ASYSI_ATTEMPT=1" in pod.journal()
    assert pod.journal().count("prepare started") == 2
    assert pod.events("host") == [("started", None), ("exited", 1), ("started", None), ("exited", 0)]


def test_attempts_are_limited(pod):
    """After maxRestarts further attempts the run has failed."""
    pod.plans["host"] = {"seconds": 0.1, "code": 1}
    pod.plans["finish"] = {"seconds": 0.2, "code": 1}
    assert pod.run(maxRestarts=1) == 1
    assert pod.journal().count("host started") == 2


@pytest.mark.parametrize(
    ("host", "finish", "code"),
    [({"code": 2}, {"code": 1}, 2), ({"code": 0}, {"code": 1}, 1), ({"code": 0}, {"code": 2}, 2)],
    ids=["host refuses", "books do not balance", "finish refuses"],
)
def test_what_another_attempt_would_not_mend(pod, host, finish, code):
    """Bad configuration and a bad verdict on a whole stream end the run at once."""
    pod.plans["host"] = {"seconds": 0.1, **host}
    pod.plans["finish"] = {"seconds": 0.2, **finish}
    assert pod.run() == code
    assert pod.journal().count("host started") == 1


def test_a_refusal_is_a_sentence_on_the_terminal(pod, capsys):
    """What a worker refuses stands there as it said it, without what the others say of its end."""
    pod.plans["host"] = {
        "seconds": 0.1,
        "code": 2,
        "says": "spec.model.uri: the forward of M fails in step 8",
    }
    pod.plans["finish"] = {"seconds": 0.2, "code": 1, "says": json.dumps({"problems": ["the host died"]})}
    assert pod.run() == 2
    said = capsys.readouterr().err
    assert (
        "fake refused (exit 2)\n  host: spec.model.uri: the forward of M fails in step 8\n  restarts" in said
    )


def test_a_failure_is_told_in_sentences(pod, capsys):
    """The summary that finish leaves for programs is shown as its problems."""
    words = json.dumps({"complete": True, "problems": ["a row is missing", "and so on"]})
    pod.plans["finish"] = {"seconds": 0.2, "code": 1, "says": words}
    assert pod.run() == 1
    said = capsys.readouterr().err
    assert "  finish: a row is missing\n  and so on\n" in said
    assert "{" not in said.partition("fake failed")[2]


def test_a_bad_verdict_is_told_in_a_sentence(pod, capsys):
    """Where finish fails because its verdict is bad, the terminal shows the verdict and no line of a log."""
    sentence = "The run is complete, but its results are not sound."
    text = "Trainer topk has no result at layer.1."
    pod.plans["finish"] = {
        "seconds": 0.4,
        "code": 1,
        "says": json.dumps({"problems": []}),
        "writes": {
            "verdict.json": {
                "level": "fail", "sentence": sentence, "findings": [{"level": "fail", "text": text}],
            },
            "logs/finish.log": "2026-01-01 INFO a line",
        },
    }  # fmt: skip
    assert pod.run() == 1
    told = capsys.readouterr().err
    assert f"✕ fake failed (exit 1)\n  {sentence}\n" in told
    assert f"data     ✕ {text}" in told
    assert "INFO" not in told
    assert "exit code 1" not in told


def test_a_refusing_host_releases_those_who_wait(pod, monkeypatch):
    """When the host refuses before there is a stream, finish is not waited for longer than its patience."""
    monkeypatch.setattr("asysi_operator.local.pod.PATIENCE_AFTER_BAD_CONFIG", 0.3)
    pod.plans["host"] = {"seconds": 0.1, "code": 2, "says": "line 7 of data.jsonl is not JSON"}
    assert pod.run() == 2
    assert "finish ended 143" in pod.journal()
    assert not pod.output.exists()


def test_a_host_that_dies_before_there_is_a_stream(pod):
    """A host that dies before the others could notice is a new attempt too, after one grace period."""
    pod.plans["host"] = [{"seconds": 0.1, "code": 1}, {"seconds": 0.1}]
    assert pod.run(gracePeriodSeconds=1) == 0
    assert pod.journal().count("host started") == 2


def test_prepare_refuses(pod, capsys):
    """When prepare refuses, its words are on stderr, the exit code is 2, and nothing is left behind."""
    pod.plans["prepare"] = {"seconds": 0, "code": 2, "says": "no hook point matches encoder.*"}
    assert pod.run() == 2
    assert "no hook point matches encoder.*" in capsys.readouterr().err
    assert not pod.output.exists()
    assert pod.leftovers() == []
    assert pod.journal().count("prepare started") == 1


def test_a_sidecar_refuses(pod, capsys):
    """A sidecar that refuses its configuration ends the run with 2 instead of crashing for ever."""
    pod.plans["sae"] = {"seconds": 0, "code": 2, "says": "the checkpoint is of another model"}
    assert pod.run() == 2
    assert "the checkpoint is of another model" in capsys.readouterr().err


def test_kill_once(pod):
    """A container named for it is killed once after its first checkpoint, and comes back."""
    pod.plans["sae"] = [{"writes": ["checkpoints/topk.ckpt"]}, {}]
    pod.plans["host"] = {"seconds": 1.0}
    assert pod.run(kill_once="sae") == 0
    events = pod.events("sae")
    assert [event for event, _ in events] == ["started", "killed", "exited", "restarted", "exited"]
    assert events[2] == ("exited", 137)
    reasons = [json.loads(line)["reason"] for line in (pod.output / "events.jsonl").read_text().splitlines()]
    assert "on purpose, once, to show that it recovers" in reasons


def test_deadline(pod):
    """A run that takes longer than activeDeadlineSeconds has failed, and nothing of it runs on."""
    pod.plans["host"] = {"seconds": 60}
    assert pod.run(activeDeadlineSeconds=1) == 1
    assert pod.processes() == []


def test_start_deadline(pod):
    """A pod whose main containers do not start within startDeadlineSeconds has failed."""
    pod.plans["sae"] = {"ready": 60}
    assert pod.run(startDeadlineSeconds=1) == 1
    assert "host started" not in pod.journal()
