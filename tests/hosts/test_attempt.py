"""The attempt's number: taken once, on the volume of the results."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from asysi.hosts.attempt import take_attempt


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Return a function that makes a pod of its own beside the one output."""
    monkeypatch.delenv("ASYSI_ATTEMPT", raising=False)

    def make(name):
        (tmp_path / name).mkdir()
        return SimpleNamespace(output=tmp_path / "output", workspace=tmp_path / name, attempt=0)

    return make


def test_each_pod_has_a_number_of_its_own(pod):
    """However many begin at once, their numbers are 0, 1, 2 and so on."""
    pods = [pod(str(number)) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(take_attempt, pods)) == list(range(16))


def test_prepare_run_again_keeps_its_number(pod):
    """A pod whose prepare runs twice is one attempt; what else lies in the folder counts for nothing."""
    first, second = pod("first"), pod("second")
    (first.output / "attempts" / "notes").mkdir(parents=True)
    (first.output / "attempts" / ("9" * 12)).mkdir()
    assert [take_attempt(one) for one in (first, first, second)] == [0, 0, 1]
    assert (first.workspace / "attempt").read_text() == "0"


def test_what_is_there_is_counted_on_from(pod):
    """Numbers that an archive of an earlier owner shows are taken too."""
    heir = pod("heir")
    (heir.output / "archive").mkdir(parents=True)
    (heir.output / "archive" / "attempt-0002-segment-0000.mscan").touch()
    assert take_attempt(heir) == 3


def test_a_number_that_is_given_stands(pod, monkeypatch):
    """The local runner counts by itself."""
    monkeypatch.setenv("ASYSI_ATTEMPT", "3")
    told = pod("told")
    told.attempt = 3
    assert take_attempt(told) == 3
    assert not told.output.exists()
