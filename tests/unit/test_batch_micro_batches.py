"""Micro-batches: nothing lost, nothing computed twice, ranks in step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.attention_plan import AttentionPlan
from pipeline.batch import (
    MicroBatch,
    TokenLogprobs,
    TrainBatch,
    make_rank_batches,
    to_samples,
)
from pipeline.types import Sample


def sample(tokens: list[int], trained: list[int], group_id: int = 0) -> Sample:
    """A sample that trains the tokens at the places ``trained``."""
    mask = np.zeros(len(tokens), np.bool_)
    mask[trained] = True
    places = np.arange(len(tokens), dtype=np.float32)
    return Sample(
        token_ids=np.array(tokens, np.int32),
        loss_mask=mask,
        round_ids=np.where(mask, 0, -1).astype(np.int16),
        sampler_logprobs=np.where(mask, -places, 0).astype(np.float32),
        advantages=np.where(mask, places / 2, 0).astype(np.float32),
        loss_weights=mask.astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
        group_id=group_id,
    )


def test_a_shared_prefix_is_computed_once() -> None:
    samples = [sample([7, 8, 9, 4], [3]), sample([7, 8, 5, 6, 4], [4])]
    (micro_batch,) = make_rank_batches(samples, 2.0, 1, 100)[0].micro_batches
    # sorted by tokens: 7 8 5 6 first, then 9 after the shared 7 8; no 4, which is predicted only
    assert micro_batch.token_ids_U.tolist() == [7, 8, 5, 6, 9]
    assert micro_batch.positions_U.tolist() == [0, 1, 2, 3, 2]
    whole, rest = micro_batch.attention.blocks
    assert whole.whole and whole.keys_BM.tolist() == whole.queries_BQ.tolist() == [[0, 1, 2, 3]]
    # the second asks for what is new alone, and sees the shared nodes too
    assert not rest.whole and rest.keys_BM.tolist() == [[0, 1, 4]]
    assert (rest.queries_BQ.tolist(), rest.places_BQ.tolist()) == ([[4]], [[2]])


def test_a_trajectory_that_occurs_twice_asks_once() -> None:
    twice = [sample([7, 8, 9, 4], [3]), sample([7, 8, 9, 4], [3])]
    (micro_batch,) = make_rank_batches(twice, 1.0, 1, 100)[0].micro_batches
    assert [block.keys_BM.tolist() for block in micro_batch.attention.blocks] == [[[0, 1, 2]]]
    assert micro_batch.head_index_P.tolist() == [0, 0]


def test_what_follows_the_last_trained_token_is_not_computed() -> None:
    # the second's tail would stand between the two others, which share three nodes
    samples = [sample([1, 2, 3, 4], [3]), sample([1, 2, 3, 5, 9], [1]), sample([1, 2, 3, 6], [3])]
    (micro_batch,) = make_rank_batches(samples, 1.0, 1, 100)[0].micro_batches
    assert micro_batch.token_ids_U.tolist() == [1, 2, 3]
    assert micro_batch.head_nodes_K.tolist() == [0, 2]


def test_in_the_last_layer_only_nodes_with_a_trained_next_token_ask() -> None:
    samples = [sample([1, 2, 3, 4, 5, 6], [2, 5]), sample([1, 2, 7, 8], [3])]
    (micro_batch,) = make_rank_batches(samples, 1.0, 1, 100)[0].micro_batches
    assert micro_batch.token_ids_U.tolist() == [1, 2, 3, 4, 5, 7]
    assert micro_batch.head_nodes_K.tolist() == [1, 4, 5]
    asked = _paths(micro_batch, micro_batch.last_attention, micro_batch.head_nodes_K)
    assert asked == {1: [1, 2], 4: [1, 2, 3, 4, 5], 5: [1, 2, 7]}


def test_every_trained_token_is_predicted_from_exactly_its_prefix() -> None:
    rng = np.random.default_rng(0)
    samples = [
        sample(rng.integers(0, 3, n).tolist(), [n // 2, n - 1], group_id=n % 3)
        for n in rng.integers(3, 30, 40)
    ]
    seen = []
    for micro_batch in micro_batches(make_rank_batches(samples, 1.0, 2, 50)):
        everyone = np.arange(micro_batch.num_nodes)
        paths = _paths(micro_batch, micro_batch.attention, everyone)
        heads = _paths(micro_batch, micro_batch.last_attention, micro_batch.head_nodes_K)
        assert heads == {node: paths[node] for node in micro_batch.head_nodes_K.tolist()}
        for i, place, node, target in zip(
            micro_batch.sample_P.tolist(),
            micro_batch.place_P.tolist(),
            micro_batch.head_nodes_K[micro_batch.head_index_P].tolist(),
            micro_batch.targets_P.tolist(),
            strict=True,
        ):
            tokens = samples[i].token_ids
            assert paths[node] == tokens[:place].tolist()
            assert target == tokens[place]
            seen.append((i, place))
    expected = [(i, p) for i, s in enumerate(samples) for p in np.flatnonzero(s.loss_mask).tolist()]
    assert sorted(seen) == sorted(expected)


def test_values_stay_with_their_tokens() -> None:
    samples = [sample([1, 2, 3, 4], [1, 3]), sample([1, 2, 9, 9, 9], [2, 4])]
    for micro_batch in micro_batches(make_rank_batches(samples, 1.0, 1, 100)):
        places = micro_batch.place_P.astype(np.float32)
        assert micro_batch.sampler_logprobs_P.tolist() == (-places).tolist()
        assert micro_batch.advantages_P.tolist() == (places / 2).tolist()
        assert micro_batch.proximal_logprobs_P is None


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=0, max_size=20),
    world_size=st.integers(1, 4),
    budget=st.integers(1, 80),
)
def test_all_ranks_have_the_same_number_of_micro_batches_and_lose_nothing(
    lengths: list[int], world_size: int, budget: int
) -> None:
    samples = [sample(list(range(n)), [n - 1], group_id=i // 3) for i, n in enumerate(lengths)]
    batches = make_rank_batches(samples, 3.0, world_size, budget)
    assert len(batches) == world_size
    assert len({len(b.micro_batches) for b in batches}) == 1
    assert {b.normaliser for b in batches} == {3.0}
    trained = [i for m in micro_batches(batches) for i in m.sample_P.tolist()]
    assert sorted(trained) == list(range(len(lengths)))
    for micro_batch in micro_batches(batches):
        rows = sum(len(block.keys_BM) for block in micro_batch.attention.blocks)
        assert micro_batch.num_nodes <= max(budget, 2) or rows == 1


def test_ranks_get_nearly_equal_work() -> None:
    rng = np.random.default_rng(1)
    samples = [
        sample(rng.integers(0, 999, n).tolist(), [n - 1], group_id=i // 8)
        for i, n in enumerate(rng.integers(100, 500, 128))
    ]
    loads = [
        sum(m.num_nodes for m in b.micro_batches) for b in make_rank_batches(samples, 1.0, 2, 4096)
    ]
    assert max(loads) / min(loads) < 1.05


def test_a_rank_without_samples_takes_part_with_an_empty_micro_batch() -> None:
    batches = make_rank_batches([sample([1, 2], [1])], 1.0, 2, 100)
    assert sorted(b.micro_batches[0].num_trained for b in batches) == [0, 1]


def test_logprobs_go_back_to_their_samples() -> None:
    samples = [sample([1, 2, 3], [1, 2]), sample([4, 5], [1])]
    part = TokenLogprobs(
        sample_P=np.array([1, 0, 0]),
        place_P=np.array([1, 2, 1]),
        logprobs_P=np.array([-5.0, -2.0, -1.0], np.float32),
    )
    assert [a.tolist() for a in to_samples(samples, [part])] == [[0.0, -1.0, -2.0], [0.0, -5.0]]


@pytest.mark.parametrize("normaliser", [0.0, -1.0, float("nan"), float("inf")])
def test_a_normaliser_that_cannot_divide_is_refused(normaliser: float) -> None:
    with pytest.raises(ValueError, match="normaliser"):
        make_rank_batches([sample([1, 2], [1])], normaliser, 1, 10)


def micro_batches(batches: list[TrainBatch]):  # type: ignore[no-untyped-def]
    return [m for b in batches for m in b.micro_batches]


def _paths(
    micro_batch: MicroBatch, plan: AttentionPlan, nodes_N: np.ndarray
) -> dict[int, list[int]]:
    """Tokens up to and with each of the nodes that ask: what its one query may see."""
    slot_of = dict(zip(nodes_N.tolist(), plan.slots_N.tolist(), strict=True))
    paths: dict[int, list[int]] = {}
    offset = 0
    for block in plan.blocks:
        rows, width = block.queries_BQ.shape
        for b in range(rows):
            for q in range(width):
                node, place = int(block.queries_BQ[b, q]), int(block.places_BQ[b, q])
                if slot_of.get(node) != offset + b * width + q:
                    continue  # padding
                assert node not in paths
                seen = block.keys_BM[b, : place + 1]
                assert seen[-1] == node
                assert micro_batch.positions_U[seen].tolist() == list(range(place + 1))
                assert not block.whole or place == q
                paths[node] = micro_batch.token_ids_U[seen].tolist()
        offset += rows * width
    assert len(paths) == len(nodes_N)
    return paths
