"""The page: self-contained, escaped, complete, and honest about what was not measured."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from pipeline.credit.result import TrajectoryCredit
from pipeline.report import PoolTime, ReportData, ShownTrajectory, render_report, write_report
from pipeline.report.charts import Series, line_chart
from pipeline.report.tables import before_after_rows, headline, pool_shares
from pipeline.types import Verdict
from tests.support.report_run import episode, made_up_report, question, round_of


@pytest.fixture(scope="module")
def data() -> ReportData:
    return made_up_report(steps=10, questions=30)


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render_report(data)


def text_of(html: str) -> str:
    """What a reader sees: tags dropped, spaces squeezed."""
    body = html[html.index("<body>") :]
    body = re.sub(r"<svg.*?</svg>", " ", body, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("\xa0", " ")


def test_the_page_loads_nothing(html: str):
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["'](?!#)""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "<script" not in html
    assert "<link" not in html


def test_the_page_has_its_parts(html: str):
    text = text_of(html)
    for part in (
        "Training raised exact match from",
        "Before and after training",
        "1 hop", "2 hops", "3 hops",
        "pass@8",
        "Redundant searches",
        "Learning curves",
        "Where time went",
        "Staleness of the trained tokens",
        "8 whole episodes",
        "How to read the numbers",
        "Resolved configuration",
        "judged only for this page",
    ):  # fmt: skip
        assert part in text, part


def test_the_pictures_are_well_formed_and_follow_the_colours_of_the_page(html: str):
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) >= 10
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "var(--" in picture
        assert "#0a0a0" not in picture


def test_a_legend_is_readable_on_a_dark_page():
    svg = line_chart([Series("one", [(1, 1.0)]), Series("two", [(1, 2.0)])])
    (legend,) = re.findall(r'<text[^>]*style="([^"]*)"[^>]*>one</text>', svg)
    assert "var(--ink)" in legend


def shown(text: str, **changes: object) -> ShownTrajectory:
    """A won episode of two searches whose every word is ``text``; p is 1, then unknown."""
    trajectory = episode(question(1, 2))
    trajectory = replace(
        trajectory,
        question=replace(trajectory.question, text=text, answers=(text,)),
        rounds=(
            round_of(query=text, reasoning=text, passages=trajectory.rounds[0].passages),
            round_of(query=text, reasoning=text),
            round_of(answer=text),
        ),
    ).with_verdicts([Verdict(utility=1, correctness=1, rationale=text), None])
    credit = TrajectoryCredit(
        group_id=0,
        sample_id=0,
        advantage=0.5,
        success=True,
        contributions=np.array([1.0, np.nan]),
        weights=np.array([1.75, 0.25]),
        round_advantages=np.array([0.875, 0.125, 0.5]),
    )
    fields = {"credit": credit, "phase": "training", "judged_for_report": False}
    return ShownTrajectory(trajectory=trajectory, **{**fields, **changes})


def without_evaluation(data: ReportData) -> dict:
    return {
        **data.summary,
        "em": {"before": None, "after": None, "rise": None},
        "redundant_searches": {"before": None, "after": None},
        "greedy": {"before": None, "after": None},
        "sampled": {"before": None, "after": None, "rise": None},
    }


def page_with(data: ReportData, *trajectories: ShownTrajectory) -> str:
    return render_report(ReportData(summary=without_evaluation(data), shown=trajectories))


def test_everything_from_outside_is_escaped(data: ReportData):
    html = page_with(data, shown('<script>alert("x")</script><img src=x onerror=y>&amp;'))
    assert "<script>alert" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;alert") >= 7  # question, answer, two rounds, verdict ...


def test_each_round_shows_its_measures_and_a_dash_where_there_is_none(data: ReportData):
    html = page_with(data, shown("Chad"))
    first, second, answer = (
        text_of("<body>" + r)
        for r in re.findall(r'<section class="round">.*?</section>', html, flags=re.DOTALL)
    )
    assert "u = 1 v = 1 p = 1 w = 1.75 advantage +0.88" in first
    assert "needed evidence" in first
    assert "u = – v = – p = – w = 0.25 advantage +0.12" in second
    assert "redundant: nothing new" in second
    assert "u =" not in answer
    assert "advantage +0.50" in answer


def test_only_verdicts_made_for_the_page_are_marked(data: ReportData):
    badge = 'class="badge note"'
    assert badge not in page_with(data, shown("Chad"))
    assert badge in page_with(data, shown("Chad", judged_for_report=True))


def test_a_single_try_has_no_advantage(data: ReportData):
    text = text_of(page_with(data, shown("Chad", credit=None, phase="before")))
    assert "nothing to compare with" in text
    assert "w = – advantage –" in text


def test_a_rise_is_claimed_only_where_its_interval_leaves_out_zero():
    def of(low: float, high: float) -> str:
        numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
        rise = {"value": (low + high) / 2, "low": low, "high": high, "n": 9}
        return headline({"em": {"before": numbers, "after": numbers, "rise": rise}}).verdict

    assert of(0.01, 0.3) == "rose"
    assert of(-0.01, 0.3) == "unclear"
    assert of(-0.3, -0.01) == "fell"
    assert headline({"em": {"before": None, "after": None, "rise": None}}).verdict == "unmeasured"


def test_changes_per_hops_are_paired_by_question(data: ReportData):
    greedy = data.summary["greedy"]
    rows = before_after_rows(data.before, data.after, greedy["before"], greedy["after"])
    of = {row.label: row for row in rows}
    assert of["2 hops"].change["n"] == 10
    assert of["2 hops"].change["value"] == pytest.approx(
        of["2 hops"].after["value"] - of["2 hops"].before["value"]
    )


def test_the_time_of_a_pool_adds_up_to_its_actors_times_the_training_time():
    pool = PoolTime(name="learner", num_actors=2, busy_s=30.0, waiting_s=50.0)
    assert pool_shares([pool], train_s=100.0) == [
        ("learner", {"busy": 0.15, "waiting for another pool": 0.25, "idle": pytest.approx(0.6)})
    ]


def test_a_run_without_evaluation_or_steps_still_has_a_page(data: ReportData, tmp_path):
    write_report(tmp_path / "report.html", ReportData(summary=without_evaluation(data)))
    text = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "A search agent, trained for 10 steps" in text
    assert "Learning curves" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
