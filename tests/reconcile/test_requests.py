"""What is asked of the API server: watches in any pieces, and objects that are made but never taken over."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("kubernetes")

from asysi_operator.cluster import (
    CHILDREN,
    Cluster,
    GoneError,
    RejectedError,
    UnavailableError,
    _change,
    _lines,
)
from asysi_operator.manifests.labels import EXPERIMENT
from asysi_operator.reconcile import Apply

MAP = next(kind for kind in CHILDREN if kind.kind == "ConfigMap")


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_are_the_same_in_any_pieces(lines, data):
    """However the network cuts a watch, its lines come whole and in order; a torn last one does not come."""
    text = b"".join(line + b"\n" for line in lines) + b"torn"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [line for some in _lines(pieces) for line in some] == lines


def test_a_change_says_of_which_kind_it_is():
    """An event's object carries its kind, whether or not the API server wrote it."""
    line = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "one"}}}).encode()
    what, item = _change(MAP, line)
    assert (what, item["kind"], item["apiVersion"]) == ("ADDED", "ConfigMap", "v1")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"type": "ERROR", "object": {"code": 410}}', GoneError),
        (b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}', UnavailableError),
        (b"<html>", UnavailableError),
        (b"[]", UnavailableError),
        (b"{}", UnavailableError),
    ],
)
def test_what_is_no_change_is_an_error(line, error):
    """A version that is too old is told from all other trouble."""
    with pytest.raises(error):
        _change(MAP, line)


class Answers(Cluster):
    """A cluster whose answers are given; None stands for a status that is fine."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def _call(self, method, path, kind, *, body=None, query=None, fine=()):
        version = (body or {}).get("metadata", {}).get("resourceVersion")
        self.calls.append((method, version))
        return self.answers.pop(0)


class Pages(Cluster):
    """A cluster whose listings come in pages."""

    def __init__(self, *pages):
        self.pages, self.asked = [json.dumps(page).encode() for page in pages], []

    def _ask(self, method, path, kind, *, body=None, query=None, fine=(), accept=""):
        self.asked.append((query.get("continue"), query.get("labelSelector")))
        return self.pages.pop(0)


def page(version, more, *names):
    """Return a page of a listing."""
    items = [
        {"metadata": {"namespace": "lab", "name": name, "resourceVersion": "3", "managedFields": []}}
        for name in names
    ]
    return {"metadata": {"resourceVersion": version, "continue": more}, "items": items}


def test_a_listing_comes_page_by_page():
    """Every page is asked for by the word that the last one ends with, and says its version."""
    cluster = Pages(page("7", "next", "one", "two"), page("7", "", "three"))
    pages = [(list(items), version) for items, version in cluster.listing(MAP, "lab")]
    names = [[item["metadata"]["name"] for item in items] for items, _version in pages]
    assert names == [["one", "two"], ["three"]]
    assert [version for _items, version in pages] == ["7", "7"]
    assert cluster.asked == [(None, EXPERIMENT), ("next", EXPERIMENT)]
    assert all(item["kind"] == "ConfigMap" for items, _version in pages for item in items)


def test_an_audit_reads_no_more_than_versions():
    """Versions by namespace and name, whatever else the metadata holds; an empty page may have no items."""
    cluster = Pages(page("7", "next", "one"), {"metadata": {"resourceVersion": "7"}, "items": None})
    assert cluster.versions(MAP, None) == {("lab", "one"): "3"}


EXPERIMENT_IS = {"metadata": {"namespace": "lab", "name": "minilm", "uid": "u"}}
WANTED = Apply({"kind": "ConfigMap", "metadata": {"name": "minilm"}}, exists=False)


def test_what_is_not_there_is_made_by_one_request():
    """The apply carries a version that no object has: it makes one, and could not change one."""
    cluster = Answers({"made": True})
    assert cluster.do(WANTED, EXPERIMENT_IS) == {"made": True}
    assert cluster.calls == [("PATCH", "1")]


def test_what_is_there_already_is_looked_at_first():
    """Our own is returned as it is; somebody else's is named and not touched."""
    ours = {"metadata": {"name": "minilm", "labels": {EXPERIMENT: "minilm"}}}
    cluster = Answers(None, ours)
    assert cluster.do(WANTED, EXPERIMENT_IS)["metadata"] == ours["metadata"]
    cluster = Answers(None, {"metadata": {"name": "minilm"}})
    with pytest.raises(RejectedError) as refused:
        cluster.do(WANTED, EXPERIMENT_IS)
    assert refused.value.reason == "NameTaken"
    assert [method for method, _ in cluster.calls] == ["PATCH", "GET"]


def test_what_has_gone_meanwhile_is_made_after_all():
    """Between the refusal and the look it was deleted."""
    cluster = Answers(None, None, {"made": True})
    assert cluster.do(WANTED, EXPERIMENT_IS) == {"made": True}
    assert cluster.calls == [("PATCH", "1"), ("GET", None), ("PATCH", None)]
