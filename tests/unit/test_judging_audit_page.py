"""The audit's page: every kind of disagreement to read, escaped, self-contained."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from pipeline.judging.audit import audit_summary
from pipeline.judging.judged import judged_rounds
from pipeline.report.audit_page import render_audit, write_audit_page
from pipeline.report.disagreements import disagreements
from tests.support.judged import rounds_of, trace, verdict

EVIL = "<script>alert('x')</script><img src=y onerror=z>\u202e{{ 7 * 7 }}"


def summary_of(rounds, **changes):
    numbers = audit_summary(rounds, {"calls": 4.0, "money": 0.01}, seconds=2.0, resamples=100)
    judge = {"name": "openai", "model": "a/model", "prompt": "criteria_v1", "temperature": 0.7}
    return {"judge": judge, "source": "traces.jsonl", "notes": [], **numbers, **changes}


def judged(labels, *repeats, text=""):
    """The rounds of one trace."""
    said = [[verdict(pair, f"judge's reason {text}") for pair in repeat] for repeat in repeats]
    return judged_rounds([trace("q", labels, text=text)], [said])


@pytest.fixture(scope="module")
def page():
    rounds = judged([(1, 1), (0, 1), (1, 0), None], [(0, 1), (1, 1), (1, 1), (1, 1)])
    return render_audit(summary_of(rounds, notes=["bear <this> in mind"]), rounds)


class Balance(HTMLParser):
    """Tags that are open."""

    VOID = ("meta", "br", "img", "input", "link", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = self.handlers = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    reader = Balance()
    reader.feed(re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))
    assert reader.open == []
    return reader


def test_disagreements_are_grouped_by_signal_and_direction():
    rounds = judged(
        [(1, 1), (0, 1), (1, 0), (1, 1), (0, 0), None],
        [(0, 1), (1, 1), (1, 1), (1, 0), (1, 1), (0, 0)],
    )
    groups = {g.title: [c.judged.number for c in g.cases] for g in disagreements(rounds)}
    assert groups == {
        "u: label 1, verdict 0": [1],
        "u: label 0, verdict 1": [2, 5],
        "v: label 1, verdict 0": [4],
        "v: label 0, verdict 1": [3, 5],
    }


def test_a_round_is_shown_with_those_before_it_and_none_after():
    (group,) = disagreements(judged([(1, 1), (1, 1), (1, 1)], [(1, 1), (0, 1), (1, 1)]))
    (case,) = group.cases
    assert [r.query.strip() for r in case.history] == ["query 1", "query 2"]


def test_the_mean_of_repeats_decides_and_the_surest_disagreements_come_first():
    repeats = [[(0, 1), (0, 1), (1, 1)], [(1, 1), (0, 1), (1, 1)], [(0, 1), (0, 1), (0, 1)]]
    (group,) = disagreements(judged([(1, 1), (1, 1), (1, 1)], *repeats))
    assert [(c.judged.number, c.utility) for c in group.cases] == [
        (2, 0.0),
        (1, pytest.approx(1 / 3)),
    ]


def test_the_rationale_shown_is_of_a_verdict_that_disagrees():
    said = [[verdict((1, 1), "agrees")], [verdict((0, 1), "says no")], [verdict((0, 1), "later")]]
    (group,) = disagreements(judged_rounds([trace("q", [(1, 1)])], [said]))
    assert group.cases[0].rationale == "says no"


def test_rounds_without_a_verdict_are_a_group_of_their_own():
    rounds = judged([(1, 1), (1, 1)], [None, (1, 1)])
    assert [(g.title, g.total) for g in disagreements(rounds)] == [("no verdict", 1)]
    assert "no verdict: 1 round" in render_audit(summary_of(rounds), rounds)


def test_a_group_shows_so_many_and_says_how_many_there_are():
    rounds = rounds_of(*((f"q{i}", [(1, 1)], [[(0, 1)]]) for i in range(40)))
    (group,) = disagreements(rounds, limit=7)
    assert (len(group.cases), group.total) == (7, 40)
    assert "40 rounds, 25 shown" in render_audit(summary_of(rounds), rounds)


def test_the_page_has_its_parts(page):
    for part in (
        "Judge and labels agree on utility in",
        "a/model",
        "criteria_v1",
        "Agreement by round",
        "By length of the round",
        "Counts of verdicts",
        "u: label 1, verdict 0 (1)",
        "query 1",
        "passage 2",
        "label&#39;s reason",
        "judge&#39;s reason",
        "bear &lt;this&gt; in mind",
    ):
        assert part in page, part
    assert "Reliability" not in page  # one verdict a round is no confidence
    parsed(page)


def test_repeats_bring_a_reliability_picture_and_all_pictures_are_well_formed():
    rounds = rounds_of(*((f"q{i}", [(1, 0)], [[(1, 1)], [(i % 2, 0)]]) for i in range(9)))
    html = render_audit(summary_of(rounds), rounds)
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 2
    assert "share of label 1" in pictures[0]
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "var(--" in picture
    assert "all repeats equal" in html


def test_the_page_loads_nothing(page):
    assert not re.search(r"""(?:src|action|data)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"""href\s*=\s*["'](?!#)""", page)
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_no_text_of_a_trace_or_a_judge_becomes_html():
    rounds = judged([(1, 1), (0, 0)], [(0, 0), (1, 1)], text=EVIL)
    html = render_audit(summary_of(rounds, notes=[EVIL]), rounds)
    reader = parsed(html)
    assert (reader.scripts, reader.handlers) == (0, 0)
    assert "<img" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)") > 10
    assert "\u202e" not in html
    assert "‹U+202E›" in html
    assert "{{ 7 * 7 }}" in html


def test_an_estimate_without_an_interval_says_so():
    rounds = rounds_of(*((f"q{i}", [(1, 1)], [[(1, 1)], [(1, 1)]]) for i in range(4)))
    html = render_audit(summary_of(rounds), rounds)
    assert '<span class="ci">no interval</span>' in html
    assert "+0.0 to +0.0" not in html


def test_full_agreement_is_said(tmp_path):
    rounds = judged([(1, 1)], [(1, 1)])
    write_audit_page(tmp_path / "audit.html", summary_of(rounds), rounds)
    assert "every verdict is the label" in (tmp_path / "audit.html").read_text(encoding="utf-8")


def test_nothing_to_compare_is_a_dash_and_no_error():
    rounds = judged([(1, 1)], [None])
    assert "–" in render_audit(summary_of(rounds), rounds)
