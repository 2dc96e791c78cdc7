"""summary.json: the promised keys, in the promised form, whole or not at all."""

import json
import math

import pytest

from pipeline.config import AlgorithmConfig
from pipeline.credit import build_algorithm
from pipeline.evaluation import Evaluation
from pipeline.summary import (
    build_summary,
    evaluation_summary,
    sensitivity_summary,
    write_summary,
)
from pipeline.types import Sampling, Trajectory
from tests.support.credit_cases import group, trajectory
from tests.support.report_run import episode, question


def evaluation(*skills: float) -> Evaluation:
    """Question ``i`` of two hops, answered once with skill ``skills[i]``."""
    played = tuple((episode(question(i, 2), skill=s),) for i, s in enumerate(skills))
    return Evaluation(name="test", trajectories=played, sampling=Sampling(temperature=0.0))


def summary_of(before: Evaluation | None, after: Evaluation | None) -> dict:
    return build_summary(
        profile="cpu",
        algorithm="cw_grpo",
        seed=1,
        steps=5,
        seconds={"setup": 1.0, "train": 2.0, "evaluate": 3.0},
        before=before,
        after=after,
        staleness_tokens={0: 300, 1: 100},
        trained_tokens=400,
        trajectories_per_s=2.5,
    )


def test_the_promised_keys_are_there_with_their_values():
    # skills: 1 goes straight, 0.7 wastes its second of three searches, 0.2 also answers wrongly
    summary = summary_of(evaluation(0.2, 0.2, 1.0, 0.7), evaluation(1.0, 1.0, 1.0, 0.7))
    assert (summary["profile"], summary["algorithm"]) == ("cpu", "cw_grpo")
    assert (summary["seed"], summary["steps"]) == (1, 5)
    assert summary["seconds"] == {"setup": 1.0, "train": 2.0, "evaluate": 3.0}
    assert summary["em"]["before"]["value"] == 0.5
    assert summary["em"]["after"]["value"] == 1.0
    assert summary["em"]["before"].keys() == {"value", "low", "high", "n"}
    assert summary["em"]["rise"]["value"] == 0.5
    # before: 1 of 2, 1 of 2, 0 of 2, 1 of 3 rounds
    assert summary["redundant_searches"]["before"]["value"] == pytest.approx(3 / 9)
    assert summary["redundant_searches"]["after"]["value"] == pytest.approx(1 / 9)
    assert summary["staleness"] == {"max": 1, "mean": 0.25}
    assert (summary["trained_tokens"], summary["trajectories_per_s"]) == (400, 2.5)


def test_what_was_not_evaluated_is_null_and_not_zero():
    summary = summary_of(None, evaluation(1.0))
    assert summary["em"]["before"] is None
    assert summary["em"]["rise"] is None
    assert summary["redundant_searches"]["before"] is None


def test_exact_match_is_split_by_hops():
    played = [(episode(question(1, 1)),), (episode(question(2, 3), skill=0.1),)]
    by_hops = evaluation_summary(played)["em_by_hops"]
    assert {hops: e["value"] for hops, e in by_hops.items()} == {"1": 1.0, "3": 0.0}


def test_several_samples_a_question_give_pass_at_k():
    def samples(number: int, *skills: float) -> tuple[Trajectory, ...]:
        q = question(number, 1)
        return tuple(episode(q, sample_id=i, skill=s) for i, s in enumerate(skills))

    summary = evaluation_summary([samples(0, 1.0, 0.1), samples(1, 0.1, 0.1)])
    assert summary["em"]["value"] == 0.25
    assert (summary["pass_at_k"]["k"], summary["pass_at_k"]["value"]) == (2, 0.5)


def test_a_question_that_lost_all_its_samples_is_in_no_figure():
    summary = evaluation_summary([(episode(question(0, 1)),), ()])
    assert (summary["questions"], summary["em"]["value"]) == (1, 1.0)


def test_what_was_not_judged_is_null_and_not_zero():
    summary = summary_of(None, evaluation(1.0))
    assert summary["judge"] is None
    assert summary["verdict_sensitivity"] is None


def test_sensitivity_is_of_the_trained_trajectories_whose_weights_came_from_verdicts():
    won = trajectory(reward=1.0, verdicts=[(1, 1), (0, 1), (0, 1)])
    lost = trajectory(reward=0.0, verdicts=[(1, 1), (0, 1)], sample_id=1)
    no_signal = trajectory(reward=1.0, verdicts=[(1, 1)], group_id=1)

    def summary(config: AlgorithmConfig) -> dict | None:
        algorithm = build_algorithm(config)
        return sensitivity_summary(
            algorithm, algorithm.credit([group(won, lost), group(no_signal)]).trajectories
        )

    # w = 3 0 0 becomes 1 1 1, or 1.5 1.5 0 twice
    assert summary(AlgorithmConfig()) == {
        "kept": 3,
        "trajectories": 1,
        "one_search_round": 0,
        "verdicts": 3,
        "weight_change_mean": pytest.approx(5 / 3),
        "weight_change_max": 2.0,
        "credit_share_mean": pytest.approx(5 / 9),
        "credit_share_max": pytest.approx(2 / 3),
    }
    blamed = summary(AlgorithmConfig(failures="blame"))
    assert blamed is not None
    assert blamed["trajectories"] == 3
    assert summary(AlgorithmConfig(alpha=0.0)) is None
    assert summary(AlgorithmConfig(credit="process")) is None


def test_the_file_is_json_and_nothing_else_is_left_behind(tmp_path):
    write_summary(tmp_path / "summary.json", summary_of(None, evaluation(1.0)))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_number_that_json_does_not_have_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"steps": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_summary(path, {"steps": math.nan})
    assert json.loads(path.read_text()) == {"steps": 1}
