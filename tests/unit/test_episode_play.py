"""The state machine of an episode: tokens in, tokens out, rounds as they happen."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import ProtocolConfig
from pipeline.episode.play import play_episode
from pipeline.episode.protocol import SearchProtocol
from pipeline.episode.rewards import OutcomeReward
from pipeline.errors import UserError
from pipeline.types import Sampling, Status
from tests.support.scripted import ScriptedPolicy, passage, question
from tests.support.words import WordTokenizer

SEARCH = "<think> Where? </think><search> capital of Chad </search>"
ANSWER = "<think> Found. </think><answer> N'Djamena </answer>"


async def play(lines, *, max_rounds=4, max_model_len=500, max_round_tokens=50, **options):
    tokenizer = WordTokenizer()
    protocol = SearchProtocol(ProtocolConfig(max_rounds=max_rounds), tokenizer)
    policy = ScriptedPolicy(tokenizer, lines)
    queries = []
    found = options.pop("found", None)

    async def search(query, top_k):
        queries.append((query, top_k))
        return found[:top_k] if found else (passage(str(len(queries))),)

    trajectory = await play_episode(
        options.pop("asked", question()),
        group_id=3,
        sample_id=5,
        protocol=protocol,
        generate=policy.generate,
        search=search,
        sampling=Sampling(max_round_tokens=max_round_tokens),
        max_model_len=max_model_len,
        score=options.pop("score", OutcomeReward()),
        **options,
    )
    return trajectory, policy, queries


async def test_concatenating_all_rounds_gives_exactly_what_the_engine_saw_and_sampled():
    trajectory, policy, _ = await play([SEARCH, SEARCH, ANSWER])
    last = trajectory.rounds[-1]
    assert trajectory.flat_token_ids().tolist() == policy.seen[-1] + last.token_ids.tolist()
    so_far = []
    for seen, played in zip(policy.seen, trajectory.rounds, strict=True):
        so_far += played.context_ids.tolist()
        assert seen == so_far
        so_far += played.token_ids.tolist()


async def test_a_search_then_a_right_answer_earns_reward_one():
    trajectory, _, queries = await play([SEARCH, ANSWER])
    assert (trajectory.status, trajectory.reward) == (Status.ANSWERED, 1.0)
    assert queries == [("capital of Chad", 3)]
    assert [r.query for r in trajectory.rounds] == ["capital of Chad", None]
    assert trajectory.rounds[0].reasoning == "Where?"
    assert trajectory.answer == "N'Djamena"


async def test_passages_forbidden_for_a_question_are_not_shown_and_others_take_their_places():
    asked = replace(question(), forbidden=frozenset({"p1", "p3"}))
    found = tuple(passage(name) for name in ("p1", "p2", "p3", "p4", "p5"))
    found = tuple(replace(p, doc_id=f"p{n}") for n, p in enumerate(found, start=1))
    trajectory, _, queries = await play([SEARCH, ANSWER], asked=asked, found=found)
    assert queries == [("capital of Chad", 5)]
    assert [p.doc_id for p in trajectory.rounds[0].passages] == ["p2", "p4", "p5"]


async def test_a_search_in_the_last_round_runs_out_of_rounds_and_is_not_searched():
    trajectory, _, queries = await play([SEARCH, SEARCH], max_rounds=2)
    assert trajectory.status is Status.OUT_OF_ROUNDS
    assert (len(queries), trajectory.num_searches, trajectory.reward) == (1, 2, 0.0)


async def test_neither_query_nor_answer_ends_the_episode():
    trajectory, _, _ = await play(["<think> I give up. </think>"])
    assert (trajectory.status, trajectory.reward) == (Status.NO_ACTION, 0.0)


async def test_a_round_cut_at_its_token_limit_is_truncated():
    trajectory, _, _ = await play([SEARCH], max_round_tokens=4)
    assert trajectory.status is Status.TRUNCATED
    assert len(trajectory.rounds[0].token_ids) == 4


async def test_an_observation_that_does_not_fit_is_never_shown_to_the_engine():
    tokenizer = WordTokenizer()
    protocol = SearchProtocol(ProtocolConfig(), tokenizer)
    room = len(protocol.prompt_ids(question().text)) + len(tokenizer.encode(SEARCH)) + 3
    trajectory, policy, _ = await play([SEARCH, ANSWER], max_model_len=room)
    assert trajectory.status is Status.TRUNCATED
    assert len(policy.seen) == len(trajectory.rounds) == 1


async def test_a_prompt_without_room_to_answer_is_refused_by_name():
    with pytest.raises(UserError, match=r"question 'q' has \d+ prompt tokens.*protocol\.user"):
        await play([ANSWER], max_model_len=5)


async def test_without_search_the_answer_is_forced_and_the_prefix_is_context():
    trajectory, policy, queries = await play([" N'Djamena </answer>"], allow_search=False)
    assert (trajectory.status, trajectory.reward, queries) == (Status.ANSWERED, 1.0, [])
    assert policy.tokenizer.decode(trajectory.rounds[0].context_ids).endswith("<answer>")


async def test_silence_costs_what_the_config_says_and_a_wrong_answer_costs_nothing():
    shaped = OutcomeReward(no_answer_reward=-0.25)
    silent, _, _ = await play(["<think> </think>"], score=shaped)
    wrong, _, _ = await play(["<answer> Paris </answer>"], score=shaped)
    assert (silent.reward, wrong.reward) == (-0.25, 0.0)


async def test_an_exception_of_the_search_reaches_the_caller_and_not_the_model():
    async def broken(query, top_k):
        raise ConnectionError("index down")

    tokenizer = WordTokenizer()
    policy = ScriptedPolicy(tokenizer, [SEARCH])
    with pytest.raises(ConnectionError, match="index down"):
        await play_episode(
            question(),
            group_id=0,
            sample_id=0,
            protocol=SearchProtocol(ProtocolConfig(), tokenizer),
            generate=policy.generate,
            search=broken,
            sampling=Sampling(),
            max_model_len=100,
            score=OutcomeReward(),
        )
    assert len(policy.seen) == 1


async def test_versions_and_logprobs_are_those_of_the_generation():
    trajectory, _, _ = await play([ANSWER])
    only = trajectory.rounds[0]
    assert np.array_equal(only.versions, np.zeros(len(only.token_ids), dtype=np.int32))
    assert set(only.logprobs.tolist()) == {-0.5}
