"""Members of an ensemble are checked as judges of their own."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config_checks import to_config
from pipeline.errors import UserError
from pipeline.judging.config import JudgeConfig
from pipeline.judging.members import KEYS, judge_members
from pipeline.overrides import compose_config


def members_of(*members: Any, **own: Any) -> list[JudgeConfig]:
    return judge_members(JudgeConfig(name="ensemble", members=list(members), **own))


def test_a_member_has_its_own_keys_over_those_of_the_ensemble() -> None:
    first, second = members_of(
        {"name": "evidence"}, {"name": "openai", "model": "m", "rounds": "each"}, rounds="together"
    )
    assert (first.name, first.rounds, second.rounds) == ("evidence", "together", "each")
    assert second.model == "m"
    assert first.members == second.members == []


def test_any_other_judge_is_its_only_member() -> None:
    config = JudgeConfig(name="openai", model="m")
    assert judge_members(config) == [config]


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("evidence", "must be a mapping"),
        ({"model": "m"}, "with a name"),
        ({"name": "ensemble", "members": []}, "no key members"),
        ({"name": "ensemble"}, "is an ensemble itself"),
        ({"name": "openai", "budget_tokens": 5}, "no key budget_tokens"),
        ({"name": "openai", "temperature": "hot"}, "temperature|Float"),
    ],
)
def test_what_is_no_member_is_named(member: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        members_of({"name": "evidence"}, member)
    assert "judge.members[1]" in str(caught.value)


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs judge\.members"):
        members_of()


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("{name: vllm, model: m, rounds: eech}", r"judge\.members\[0\]\.rounds='eech'"),
        ("{name: vllm, model: m, max_attempts: 0}", r"judge\.members\[0\]\.max_attempts=0"),
        ("{name: openai}", r"judge\.members\[0\]\.model"),
        ("{name: openai, model: m, samples: 3}", r"judge\.members\[0\]\.samples=3"),
    ],
)
def test_values_of_members_are_checked_before_anything_starts(member: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        to_config(compose_config(["judge=ensemble", f"judge.members=[{member}]"]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["judge=small", "deterministic=true"], "deterministic=true needs judge.name=evidence"),
        (["judge=small", "judge.early=true"], "judge.early=true and judge.canaries"),
        (
            ["judge=openai", "judge.model=x", "judge.early=true", "judge.budget_tokens=1"],
            "judge.early=true and a budget",
        ),
        (
            ["judge=openai", "judge.model=x", "judge.base_url='http://here/v1?key=s'"],
            "judge.base_url must hold no user name, password or parameters",
        ),
        (["judge.canary_alarm=85"], "at most 1"),
        (["judge=small", "judge.base_url=http://me:secret@host"], "no user name, password"),
        (["judge=small", "judge.budget_money=1"], "judge.price_input"),
        (
            ["judge=small", "judge.on_canary_alarm=uniform", "algorithm.failed_verdict=zero"],
            "algorithm.failed_verdict=uniform",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        to_config(compose_config(overrides))


def test_every_key_of_a_member_is_a_key_of_the_section() -> None:
    assert set(KEYS) <= set(JudgeConfig.__dataclass_fields__)
