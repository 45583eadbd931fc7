"""The report: a pure function from data to one page that is self-contained and works offline."""

import base64
import dataclasses
import hashlib
import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asysi.bus.accounts import Consumed, Produced
from asysi.finish.history import epochs
from asysi.finish.ledger import AttemptCounts, as_json, build_ledger
from asysi.report import words
from asysi.report.data import (
    FIRING_BINS,
    NO_CONTEXT,
    Browser,
    Comparison,
    ContextText,
    Curve,
    Event,
    Features,
    Figures,
    Finding,
    Histogram,
    HookPointRow,
    LayerActivations,
    LayerRow,
    ReportData,
    Sentence,
    TimelineSection,
)
from asysi.report.definitions import DEFINITIONS
from asysi.report.packing import embed, pack
from asysi.report.page import build

HOSTILE = [
    "</script><script>window.broken=1</script>",
    "<img src=x onerror=window.broken=1>",
    "\"'><svg onload=window.broken=1>",
    "{{ 7 * 7 }}",
    "<!--",
    "]]>",
    "\u2028 &amp; \\u003c",
]
DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def browser(layers, vocabulary):
    """Return a browser of four latents a layer over documents that repeat the vocabulary."""
    n = len(vocabulary)
    tokens = np.tile(np.arange(n, dtype=np.uint32), 3)
    peaks = np.full((4, 10), NO_CONTEXT, np.uint32)
    peaks[:, 0], peaks[:3, 4] = np.arange(4) % n, n
    shades = np.zeros((4, 10, 21), np.uint8)
    shades[:, :, 12] = 255
    features = tuple(
        Features(
            layer=name,
            latents=np.array([1, 5, 8, 200], np.uint32),
            density=np.array([0.1, 0.01, 0.001, 0], np.float32),
            maximum=np.array([3, 2, 1, 0.5], np.float32),
            explained=np.array([0.01, 0.02, 0.001, 0], np.float32),
            contexts=peaks,
            shades=shades,
            neighbours=np.array([[5, 8], [1, 8], [1, 5], [1, 5]], np.uint32),
            cosines=np.full((4, 2), 0.5, np.float32),
            random=(1, 8),
            best=(5, 1),
            firings=np.full((4, FIRING_BINS), 255, np.uint8),
            logits=np.array([[0, 1, 2, 0], [1, 2, 0, 1], [0, 1, 2, 0], [NO_CONTEXT] * 4], np.uint32),
            logit_values=np.full((4, 4), 0.25, np.float32),
        )
        for name in layers
    )
    corpus = ContextText(
        tuple(vocabulary), tokens, np.array([0, n, 2 * n, 3 * n], np.uint32),
        (11, 22, 2**64 - 1), np.array([1, 0, 1], np.uint8),
    )  # fmt: skip
    step = [
        LayerActivations(name, np.ones((n, 3), np.uint32), np.full((n, 3), [2.0, 1.0, 0.0], np.float32))
        for name in layers
    ]
    return Browser(
        corpus, features, Sentence(0, tuple(step)), held_out_tokens=1000, logit_tokens=tuple(vocabulary)
    )


def report(text="plain", vocabulary=(" a", "b", " c")):
    """Return a full report in which every text that comes from outside is `text`."""
    names = [f"encoder.layer.{i}.{text}" for i in range(2)]
    books = AttemptCounts(
        {name: Produced(10, 8, 2) for name in names}, {name: Consumed(8) for name in names},
        {name: Produced(8, 8) for name in names}, {text: {name: Consumed(8) for name in names}},
    )  # fmt: skip
    layers = tuple(
        LayerRow(
            name,
            384,
            1024,
            32,
            0.123,
            0.2,
            32.0,
            0.01,
            0.02,
            3e-6,
            0.4,
            (0, 5, 9, 1),
            540_000,
            spliced=(300, 3.1, 3.2, 9.0),
        )
        for name in names
    )  # fmt: skip
    return ReportData(
        name="experiment",
        level="ok",
        verdict=text,
        figures=Figures(text, text, 90_000, 540_000, None, 0.0123, 20, 16, 0.123),
        ledger=as_json(build_ledger(books, attempt=0, complete=True)),
        problems=(text,),
        findings=(Finding("warning", text),),
        points=(
            HookPointRow(
                names[0], 10, 8, ((text, 0.5),), 3, text, 0.9, 0.01, text, (64, 0.1, 0.2), ("lapped",)
            ),
            HookPointRow(names[1], 0, 0, flags=("seen",)),
        ),
        layers=layers,
        timeline=TimelineSection(
            (0.0, 1.0),
            (1.0, 0.5),
            {text: (0.0, 0.2)},
            (0.0, 5.0),
            (10.0, 20.0),
            (Event(1.0, text, "restart"),),
        ),
        curves=tuple(
            Curve(name, (0.0, 10.0), (2.0, 1.0), (None, 0.5), (4.0, 4.0), (0.0, 0.1)) for name in names
        ),
        comparisons=(Comparison("norm", text, (Histogram(names[0], (0, 1, 2), (4, 4), (1, 3)),)),),
        browser=browser(names, vocabulary),
        limits=((text, text),),
        commands=((text, text),),
        missing=(text,),
    )


class Page(HTMLParser):
    """Collects what matters of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._inside = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside = (tag, dict(attrs).get("id"))

    def handle_endtag(self, _tag):
        self._inside = None

    def handle_data(self, data):
        self.texts[self._inside] = self.texts.get(self._inside, "") + data


def payload_of(text):
    """Return what the page's script reads."""
    return json.loads(Page(text).texts["script", "data"])


def test_the_page_asks_nobody_for_anything():
    """No attribute and no style names an address; the policy forbids every request but its own inline
    parts.
    """
    text = build(report())
    page = Page(text)
    linked = [
        value for _, name, value in page.attributes if name in {"src", "href", "action", "srcset", "poster"}
    ]
    assert all(value.startswith("#") or value == "data:," for value in linked)
    assert not re.search(r"url\s*\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and "default-src" in str(value)
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_policy_names_exactly_the_pages_own_script_and_style():
    """The hashes in the policy are those of the inline script and style: anything else inline is not run."""
    text = build(report())
    policy = html.unescape(re.search(r'content="(default-src[^"]*)"', text).group(1))
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    for kind, inline in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [name for _, name, _ in Page(text).attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    """Whatever is in names, tokens, reasons or commands: no new element, and the data arrives
    unchanged.
    """
    plain, hostile = Page(build(report())), Page(build(report(text, (" a", text, text * 2))))
    assert hostile.tags == plain.tags
    assert {name for _, name, _ in hostile.attributes} == {name for _, name, _ in plain.attributes}
    read = payload_of(build(report(text, (" a", text, text * 2))))
    assert read["browser"]["vocabulary"] == [" a", text, text * 2]
    assert read["timeline"]["events"][0]["text"] == text
    assert any(text in shown for shown in hostile.texts.values())


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists, max_leaves=8))
def test_embedded_data_is_json_that_cannot_end_its_element(value):
    """Embedded JSON holds none of < > & nor line separators, and reads back as it was."""
    text = embed(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_packed_numbers_arrive_unchanged_in_the_narrowest_type(values):
    """base64 of the narrowest unsigned type holds the same numbers."""
    packed = pack(np.array(values, np.uint32))
    assert np.frombuffer(base64.b64decode(packed["b"]), f"<{packed['t']}").tolist() == values
    assert packed["t"] == ("u1" if max(values, default=0) < 256 else "u2" if max(values) < 65536 else "u4")


def test_a_page_holds_no_doubles():
    """A type without counterpart on the page is refused."""
    with pytest.raises(ValueError, match="float64"):
        pack(np.zeros(3))


@pytest.mark.parametrize(
    "without",
    [
        {"browser": None}, {"timeline": None}, {"curves": ()}, {"points": (), "findings": ()},
        {"comparisons": ()}, {"layers": (), "browser": None},
        {"ledger": {}}, {"limits": (), "commands": ()}, {"figures": Figures("m")},
    ],
    ids=", ".join,
)  # fmt: skip
def test_a_page_without_a_part_is_still_a_page(without):
    """Whatever is missing, the rest is shown and the missing sentences stand on it."""
    data = dataclasses.replace(report(), missing=("The part is not here.",), **without)
    text = build(data)
    assert "The part is not here." in text
    assert "What the numbers mean" in text
    payload_of(text)


def test_a_failed_experiment_says_so_at_the_top():
    """The verdict of a failure, its problems and what is missing come before everything else."""
    data = ReportData("x", "fail", "The books does not balance.", Figures("m"), problems=("sae is gone",))
    text = build(data)
    assert 'class="verdict fail"' in text
    assert text.index("The books does not balance.") < text.index("sae is gone") < text.index('id="sample"')


def test_the_training_of_the_watched_model():
    """Figures and drift of the watched model's own training are on the page, unknown ones as such."""
    figures = [
        {"epoch": 1, "step": 9, "accuracy": 0.5, "drift/fc1": 0.01, HOSTILE[0]: 1},
        {"epoch": 2, "step": 18, "accuracy": None, "drift/fc1": 0.25, HOSTILE[0]: 2},
    ]
    text = build(dataclasses.replace(report(), epochs=epochs(figures)))
    section = text[text.index('id="watched"') : text.index('id="sample"')]
    assert "after each of 2 epochs" in section
    row = " ".join(re.sub("<[^>]+>", " ", section).split())
    assert "accuracy 0.5000 –" in row
    assert "Drift of fc1 0.0100 0.2500" in row
    assert 'points="0.0,23.0 100.0,1.0"' in section
    assert HOSTILE[0] not in text
    for nothing in (None, {}, [], [1], "x"):
        assert 'id="watched"' not in build(dataclasses.replace(report(), epochs=epochs(nothing)))


def test_every_metric_links_to_a_definition_that_is_there():
    """Each #def- link of the page has its target."""
    text = build(report())
    links = set(re.findall(r'href="#(def-[a-z0-9-]+)"', text)) | set(re.findall(r'fact\("([a-z-]+)"', text))
    targets = {f"def-{one.key}" for one in DEFINITIONS}
    assert {link if link.startswith("def-") else f"def-{link}" for link in links} <= targets
    assert targets <= set(re.findall(r'id="(def-[a-z0-9-]+)"', text))


def test_the_documentation_repeats_the_definitions():
    """docs/report.md holds every definition, word for word."""
    page = " ".join(DOCS.read_text().split())
    missing = [one.name for one in DEFINITIONS if f"**{one.name}.** {one.text}" not in page]
    assert missing == []


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.1234567, "12.3%"), (1, "100%"), (0, "0%"), (0.99999, "100%"), (3.12e-6, "0.000312%"), (0.02, "2.00%"),
     (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_shares_have_three_digits(share, text):
    """Percentages show three significant digits and never more than they mean."""
    assert words.percent(share) == text


def test_short_names_tell_layers_apart():
    """What all paths share is left out; a number keeps the word before it; one path stays whole."""
    assert words.short_names([f"encoder.layer.{i}.output" for i in (0, 10)]) == ["layer 0", "layer 10"]
    assert words.short_names(["h.0.mlp", "h.0.attn"]) == ["mlp", "attn"]
    assert words.short_names(["a.b"]) == ["a.b"]
    assert words.short_names(["a/x.0.y", "b/x.0.y"]) == ["a/x", "b/x"]


@given(
    st.lists(
        st.from_regex(r"[a-z]{1,3}(\.([a-z]{1,3}|[0-9]{1,2})){0,4}", fullmatch=True), min_size=1, unique=True
    )
)
def test_short_names_stay_distinct(paths):
    """Distinct paths have distinct short names, none of them empty."""
    short = words.short_names(paths)
    assert len(set(short)) == len(paths)
    assert all(short)


def test_distance_is_total_variation():
    """Equal shares have distance 0 whatever the counts; disjoint ones 1; nothing against nothing 0."""
    assert Histogram("", (0, 1, 2), (10, 30), (1, 3)).distance == 0
    assert Histogram("", (0, 1, 2), (5, 0), (0, 7)).distance == 1
    assert Histogram("", (0, 1, 2), (0, 0), (0, 0)).distance == 0


def test_a_browser_opens_the_feature_that_the_address_names(tmp_path, program):
    """In headless Chromium, with hostile tokens: the latent of the address is shown, and nothing of them
    has run.
    """
    file = tmp_path / "report.html"
    file.write_text(build(report("plain", (" a", *HOSTILE))))
    shown = subprocess.run(
        [program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         f"{file.as_uri()}#encoder.layer.1.plain/8"],
        capture_output=True, text=True, timeout=90, check=True,
    ).stdout  # fmt: skip
    page = Page(shown)
    assert "Latent 8" in shown
    assert "firings by activation" in shown
    assert "Raises" in shown
    assert shown.count("<polyline") >= 4 * 2
    assert ("button", "aria-selected", "true") in page.attributes
    assert "onerror" not in {name for _, name, _ in page.attributes}
    assert "onload" not in {name for _, name, _ in page.attributes}
    assert "img" not in page.tags
    assert html.escape(HOSTILE[0], quote=False).strip() in shown
