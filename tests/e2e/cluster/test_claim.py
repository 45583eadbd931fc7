"""Several experiments on one claim of a real cluster: each has its own folder, at once and one by one."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def _attempt_and_place(lab: Any, name: str) -> tuple[int, str]:
    status = lab.until_phase(name, "Succeeded")
    return status["attempt"], status["output"]


def test_each_has_a_folder_of_its_own(lab: Any, operator: Any, until: Callable[..., Any]) -> None:
    """Two at once and one later count their attempts alone: none finds what another has left there."""
    for name in ("first", "second"):
        lab.apply(name, host="run-4")
    assert _attempt_and_place(lab, "first") == (0, "results/first")
    assert _attempt_and_place(lab, "second") == (0, "results/second")
    lab.apply("third", host="run-1")
    assert _attempt_and_place(lab, "third") == (0, "results/third")
    lab.apply("chosen", {"output": {"path": "a/b"}}, host="run-1")
    assert _attempt_and_place(lab, "chosen") == (0, "results/a/b")

    lab.delete("ScanExperiment", "first")
    until(lambda: not lab.all("Pod", of="first"), "its pod goes")
    lab.apply("first", host="run-1")
    assert _attempt_and_place(lab, "first") == (1, "results/first"), "created anew, it finds its own folder"
    for name in ("first", "second", "third", "chosen"):
        lab.delete("ScanExperiment", name)
