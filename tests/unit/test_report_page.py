"""The page: self-contained, escaped, complete, and honest about what was not measured."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import AlgorithmConfig
from pipeline.credit import Algorithm, build_algorithm
from pipeline.credit.result import TrajectoryCredit
from pipeline.judging.costs import judge_costs
from pipeline.report import PoolTime, ReportData, ShownTrajectory, render_report, write_report
from pipeline.report.charts import Series, line_chart
from pipeline.report.tables import before_after_rows, headline, pool_shares
from pipeline.types import Verdict
from tests.support.credit_cases import group, trajectory
from tests.support.report_run import (
    JUDGE_TOTALS,
    episode,
    made_up_report,
    question,
    round_of,
)


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
        "What judging cost",
        "How much hangs on one verdict",
        "The verdict that mattered most",
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


def judged(
    *verdicts: Verdict | None, config: AlgorithmConfig | None = None, won: bool = True
) -> tuple[ShownTrajectory, Algorithm]:
    """A try with these verdicts beside one of the other outcome, with training's own credit."""
    algorithm = build_algorithm(config or AlgorithmConfig())
    signals = [None if v is None else (v.utility, v.correctness) for v in verdicts]
    played = trajectory(reward=float(won), verdicts=signals).with_verdicts(verdicts)
    other = trajectory(reward=float(not won), verdicts=[(1, 1)], sample_id=1)
    credit = algorithm.credit([group(played, other)]).trajectories[0]
    shown_ = ShownTrajectory(
        trajectory=played, credit=credit, phase="training", judged_for_report=False
    )
    return shown_, algorithm


def rounds_and_head(data: ReportData, case: tuple[ShownTrajectory, Algorithm]) -> list[str]:
    """The text of each round, then that of the head of the episode."""
    summary = without_evaluation(data)
    html = render_report(ReportData(summary=summary, shown=[case[0]], algorithm=case[1]))
    parts = re.findall(r'<section class="round">.*?</section>', html, flags=re.DOTALL)
    parts += re.findall(r'<div class="head">.*?<section', html, flags=re.DOTALL)
    return [text_of("<body>" + part) for part in parts]


YES, NO = Verdict(utility=1, correctness=1), Verdict(utility=0, correctness=1)


def test_each_verdict_shows_what_its_opposite_would_have_done(data: ReportData):
    # w = 3 0 0; without the first 1 1 1; with the second 1.5 1.5 0
    first, second, third, answer, head = rounds_and_head(data, judged(YES, NO, NO))
    assert "Opposite verdict ( p = 0): w 3.00 → 1.00 , others by up to +1.00." in first
    assert "Opposite verdict ( p = 1): w 0.00 → 1.50 , others by up to −1.50." in second
    assert "Opposite verdict ( p = 1): w 0.00 → 1.50 , others by up to −1.50." in third
    assert "Opposite" not in answer
    assert "The verdict that mattered most: round 1 " in head
    assert "its weight would go from 3.00 to 1.00)" in head


def test_verdicts_that_mattered_as_much_are_named_with_the_first(data: ReportData):
    *_, head = rounds_and_head(data, judged(YES, NO))
    assert "round 1 (with the opposite one its weight would go from 2.00 to 1.00" in head
    assert "as much hangs on round 2)" in head


def test_a_lost_try_says_why_no_verdict_mattered(data: ReportData):
    first, second, _, head = rounds_and_head(data, judged(YES, NO, won=False))
    assert "in a lost try every round weighs 1 whatever the verdicts" in head
    assert "Opposite" not in first + second


def test_a_lost_try_that_is_blamed_has_opposite_verdicts(data: ReportData):
    config = AlgorithmConfig(failures="blame")
    first, _, _, head = rounds_and_head(data, judged(YES, NO, config=config, won=False))
    assert "w 0.00 → 1.00 , the other by −1.00." in first
    assert "The verdict that mattered most" in head


def test_a_single_search_round_keeps_its_credit_whatever_the_verdict(data: ReportData):
    _, _, head = rounds_and_head(data, judged(NO))
    assert "there is one search round, which keeps the whole advantage" in head


def test_a_round_without_a_verdict_says_what_the_rule_did_and_has_no_opposite(data: ReportData):
    first, second, _, head = rounds_and_head(data, judged(YES, None))
    assert "No verdict" not in first
    assert "all search rounds of this try count alike (algorithm.failed_verdict=uniform)" in second
    assert "a round without a verdict makes all of them weigh 1" in head
    assert "Opposite" not in first + second

    config = AlgorithmConfig(failed_verdict="zero")
    first, second, _, head = rounds_and_head(data, judged(YES, None, config=config))
    assert "contributed nothing (p = 0) (algorithm.failed_verdict=zero)" in second
    assert "Opposite" not in second
    assert "w 2.00 → 1.00" in first
    assert "mattered most: round 1 " in head


def test_a_verdict_made_for_the_page_is_not_taken_for_one_that_training_had(data: ReportData):
    trained, algorithm = judged(YES, None)
    later = replace(trained, trajectory=trained.trajectory.with_verdicts([YES, NO]))
    _, second, _, _ = rounds_and_head(data, (later, algorithm))
    assert "u = 0 v = 1 p = 0 w = 1.00" in second
    assert "Training had no verdict for this round" in second
    assert "Opposite" not in second


def test_where_verdicts_are_rewards_no_weight_is_turned_round(data: ReportData):
    case = judged(YES, None, config=AlgorithmConfig(credit="process"))
    first, second, _, head = rounds_and_head(data, case)
    assert "Opposite" not in first
    assert "all search rounds of this try count alike" in second
    assert "verdict" not in head


def test_the_contribution_is_that_of_the_signal(data: ReportData):
    config = AlgorithmConfig(signal="correctness")
    first, second, *_ = rounds_and_head(data, judged(NO, Verdict(utility=1, correctness=0),
                                                     config=config))  # fmt: skip
    assert "p = 1 w = 2.00" in first
    assert "p = 0 w = 0.00" in second


def test_a_rationale_is_text_and_never_markup(data: ReportData):
    evil = Verdict(
        utility=1, correctness=1, rationale="</div><script>alert(1)</script>&lt;b>\u202e"
    )
    shown_, algorithm = judged(evil, NO)
    summary = without_evaluation(data)
    html = render_report(ReportData(summary=summary, shown=[shown_], algorithm=algorithm))
    assert "<script" not in html
    assert "&lt;/div&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;lt;b&gt;‹U+202E›" in html


def judge_section(data: ReportData, **changes: object) -> str:
    summary = {**without_evaluation(data), **changes}
    return text_of(render_report(ReportData(summary=summary, algorithm=data.algorithm)))


def test_what_judging_cost_is_a_table(data: ReportData):
    totals = {**JUDGE_TOTALS, "rounds": 503.0, "failures": 3.0, "prompt_tokens": 250_000.0}
    text = judge_section(data, judge=judge_costs(totals, trajectories=2000))
    assert "in all a judged round 1,000 episodes" in text
    assert "Rounds with a verdict 500 Calls" in text
    assert "Prompt tokens 250,000 500 125,000" in text
    assert "Money, by the prices that are set 0.0616 0.000123 0.0308" in text
    assert "Between question and answer 4 min 1 s 0.482 s 121 s" in text
    assert "The learner waited for judges alone 1 min 1 s 0.122 s 30.50 s" in text
    assert "Answers that were no verdict 6" in text
    assert "Calls that failed" not in text
    assert "no prices are set" not in text


def test_waiting_and_canaries_are_drawn_where_there_are_any(data: ReportData, html: str):
    titles = ("Waiting for the judge", "The judge against its canaries")
    assert all(title in html for title in titles)
    records = [
        replace(r, metrics={**without_judge(r.metrics), "judge/wait_s": 0.0}) for r in data.records
    ]
    other = render_report(replace(data, records=records))
    assert not any(title in other for title in titles)


def without_judge(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("judge/")}


def test_tokens_without_prices_have_no_money(data: ReportData):
    costs = judge_costs({**JUDGE_TOTALS, "money": 0.0}, trajectories=2000)
    text = judge_section(data, judge=costs)
    assert "Money, by the prices that are set – – –" in text
    assert "no prices are set" in text


def test_a_rule_that_asks_no_model_has_a_line_instead(data: ReportData):
    totals = {"rounds": 1240.0, "failures": 40.0, "busy_s": 0.31, "wait_s": 0.12}
    text = judge_section(data, judge=judge_costs(totals, trajectories=900))
    assert "0.3 s of computing, for which the learner waited 0.1 s" in text
    assert "no language model was asked; 1,200 of 1,240 search rounds got a verdict" in text
    assert "a judged round" not in text
    nothing = judge_costs({"rounds": 0.0, "failures": 0.0, "busy_s": 0.0}, trajectories=900)
    assert "training asked for no verdict" in judge_section(data, judge=nothing)


def test_what_hangs_on_one_verdict_is_said_with_its_basis(data: ReportData):
    found = {
        "kept": 256,
        "trajectories": 130,
        "one_search_round": 12,
        "verdicts": 301,
        "weight_change_mean": 0.93,
        "weight_change_max": 2.0,
        "credit_share_mean": 0.41,
        "credit_share_max": 0.667,
    }
    text = judge_section(data, verdict_sensitivity=found)
    assert "41 % of the credit that an episode's search rounds share" in text
    assert "At most 67 %" in text
    assert "±0.93 is the mean change" in text
    assert "Each of 301 verdicts was turned round alone" in text
    assert "130 trained episodes (12 with a single search round)" in text
    assert "among the latest 256 trained ones" in text


def test_without_verdicts_in_training_nothing_is_said_to_hang_on_them(data: ReportData):
    costs = judge_costs(JUDGE_TOTALS, trajectories=10)
    text = judge_section(data, judge=costs, verdict_sensitivity=None)
    assert "no trained episode's weights came from verdicts" in text
    assert "The judge" not in judge_section(data, judge=None, verdict_sensitivity=None)
