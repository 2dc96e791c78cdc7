"""The engine against transformers on the same weights: tokens, log-probabilities, versions."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.engine import Engine
from actors.vllm_io import renew_salts
from actors.weight_digest import digest_tensors
from pipeline.errors import InfrastructureError
from pipeline.types import Sampling
from tests.support.rollout import (
    ROLLOUT,
    load_model,
    model_of,
    perturb,
    policy_config,
    reference_logprobs,
    spare_of,
    weights_of,
)

PROMPT = list(range(20, 70))


@pytest.fixture(scope="module")
def engine(tiny_policy: Path) -> Iterator[Engine]:
    importlib.import_module("llvmlite.binding.ffi")  # as numba does: vLLM fell over it
    engine = Engine(policy_config(tiny_policy), ROLLOUT, seed=0)
    yield engine
    engine.close()


async def load(engine: Engine, model: Any) -> None:
    """All of an update but its end."""
    await engine.start_weight_update()
    await engine.receive_weights({"tensors": weights_of(model)})


async def update(engine: Engine, model: Any, version: int) -> Any:
    await load(engine, model)
    return await engine.finish_weight_update(version)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_sampled_logprobs_are_those_of_the_sampling_distribution(
    engine: Engine, tiny_policy: Path, temperature: float
) -> None:
    model = load_model(tiny_policy)
    await update(engine, model, 1)
    sampling = Sampling(temperature=temperature, max_round_tokens=60)
    out = await engine.generate(PROMPT, sampling)
    expected = reference_logprobs(model, [*PROMPT, *out.token_ids], temperature)
    np.testing.assert_allclose(out.logprobs, expected[len(PROMPT) - 1 :], atol=1e-4)


async def test_greedy_takes_the_argmax_and_gives_raw_logprobs(
    engine: Engine, tiny_policy: Path
) -> None:
    import torch

    model = load_model(tiny_policy)
    await update(engine, model, 2)
    out = await engine.generate(PROMPT, Sampling(temperature=0.0, max_round_tokens=20))
    tokens = [*PROMPT, *out.token_ids.tolist()]
    with torch.no_grad():
        argmax = model(torch.tensor([tokens])).logits[0].argmax(-1).numpy()
    np.testing.assert_array_equal(out.token_ids, argmax[len(PROMPT) - 1 : -1])
    expected = reference_logprobs(model, tokens)
    np.testing.assert_allclose(out.logprobs, expected[len(PROMPT) - 1 :], atol=1e-4)


async def test_a_stop_token_ends_the_text_and_is_part_of_it(engine: Engine) -> None:
    greedy = Sampling(temperature=0.0, max_round_tokens=20)
    free = await engine.generate(PROMPT, greedy)
    stop = int(free.token_ids[4])
    first = free.token_ids.tolist().index(stop)
    out = await engine.generate(PROMPT, greedy, stop_token_ids=[stop])
    assert out.token_ids.tolist() == free.token_ids[: first + 1].tolist()
    assert out.stopped
    assert not free.stopped


async def test_a_stop_string_ends_the_text_with_the_token_that_completes_it(
    engine: Engine, tiny_policy: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    greedy = Sampling(temperature=0.0, max_round_tokens=30)
    free = await engine.generate(PROMPT, greedy)
    texts = [tokenizer.decode(free.token_ids[: n + 1]) for n in range(30)]
    printable = next(n for n in range(5, 30) if texts[n][-3:].isascii() and texts[n][-3:].strip())
    stop = texts[printable][-3:]
    out = await engine.generate(PROMPT, greedy, stop_strings=[stop])
    ended = next(n for n in range(30) if stop in texts[n])
    assert out.token_ids.tolist() == free.token_ids[: ended + 1].tolist()
    assert len(out.logprobs) == ended + 1
    assert out.stopped


async def test_an_update_in_flight_changes_the_version_and_the_distribution_at_one_token(
    engine: Engine, tiny_policy: Path
) -> None:
    old, new = load_model(tiny_policy), load_model(tiny_policy)
    perturb(new, seed=1, scale=0.1)
    await update(engine, old, 5)
    await load(engine, new)  # may take longer than the generation
    sampling = Sampling(max_round_tokens=400)
    running = asyncio.create_task(engine.generate(PROMPT, sampling))
    before = engine.stats()["busy_s"]
    while engine.stats()["busy_s"] < before + 0.05:
        await asyncio.sleep(0.005)
    receipt = await engine.finish_weight_update(6)
    out = await running
    assert receipt.version == 6
    assert receipt.digest == digest_tensors(weights_of(new))
    switch = int((out.versions == 5).sum())
    assert 0 < switch < len(out.versions)
    assert out.versions.tolist() == [5] * switch + [6] * (len(out.versions) - switch)
    expected = reference_logprobs(old, [*PROMPT, *out.token_ids])[len(PROMPT) - 1 :]
    np.testing.assert_allclose(out.logprobs[:switch], expected[:switch], atol=1e-4)
    assert np.abs(out.logprobs[switch:] - expected[switch:]).max() > 0.1


async def test_the_engine_steps_on_while_new_weights_are_loaded(
    engine: Engine, tiny_policy: Path
) -> None:
    """Whole generations by the old weights while the new ones are on their way, three times over:
    the two models of the engine take turns."""
    for version in (20, 21, 22):
        model, before = load_model(tiny_policy), engine.version
        perturb(model, seed=version, scale=0.1)
        spare = await engine.between_steps(spare_of)
        loading, go_on = threading.Event(), threading.Event()

        def held_up(
            weights: Any, load: Any = spare.load_weights, at: Any = (loading, go_on)
        ) -> Any:
            at[0].set()
            assert at[1].wait(60)
            return load(weights)

        spare.load_weights = held_up
        updating = asyncio.create_task(update(engine, model, version))
        assert await asyncio.to_thread(loading.wait, 60)
        meanwhile = await engine.generate(PROMPT, Sampling(max_round_tokens=20))
        assert set(meanwhile.versions.tolist()) == {before}
        go_on.set()
        assert (await updating).digest == digest_tensors(weights_of(model))
        del spare.load_weights
        assert await engine.between_steps(model_of) is spare
        out = await engine.generate(PROMPT, Sampling(max_round_tokens=20))
        assert set(out.versions.tolist()) == {version}
        expected = reference_logprobs(model, [*PROMPT, *out.token_ids])[len(PROMPT) - 1 :]
        np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)


async def test_updates_one_after_the_other_leave_every_token_to_one_version(
    engine: Engine, tiny_policy: Path
) -> None:
    """Loading and packing go on while other requests are generated: every token has the
    log-probability that the weights of its version give it, where the KV cache is all theirs."""
    models = {}
    for version in range(30, 36):
        models[version] = load_model(tiny_policy)
        perturb(models[version], seed=version, scale=0.1)
    await update(engine, models[30], 30)
    whole: list[Any] = []  # generations by one version

    async def keep_busy() -> None:
        while True:
            out = await engine.generate(PROMPT, Sampling(max_round_tokens=12))
            whole.extend([out] if len(set(out.versions.tolist())) == 1 else [])

    busy = [asyncio.create_task(keep_busy()) for _ in range(4)]
    for version in range(31, 36):
        await update(engine, models[version], version)
        while whole[-1:] == [] or whole[-1].versions[0] != version:
            await asyncio.sleep(0.01)
    for task in busy:
        task.cancel()
    for out in whole:
        model = models[int(out.versions[0])]
        expected = reference_logprobs(model, [*PROMPT, *out.token_ids])[len(PROMPT) - 1 :]
        np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)


async def test_a_batch_after_the_same_seed_samples_the_same_tokens(engine: Engine) -> None:
    asked = [([20 + i, *PROMPT], Sampling(max_round_tokens=12 + i)) for i in range(6)]

    async def sampled(seed: int) -> list[list[int]]:
        await engine.set_seed(seed)
        return [out.token_ids.tolist() for out in await engine.generate_batch(asked)]

    first = await sampled(1)
    assert await sampled(1) == first
    assert await sampled(2) != first
    assert [len(tokens) for tokens in first] == [12, 13, 14, 15, 16, 17]


async def test_the_prefix_cache_never_serves_blocks_of_older_weights(
    engine: Engine, tiny_policy: Path
) -> None:
    """The same long prompt before and after an update; a running request keeps the cache busy."""
    old, new = load_model(tiny_policy), load_model(tiny_policy)
    perturb(new, seed=2, scale=0.1)
    await update(engine, old, 7)
    long_prompt = [20 + n % 200 for n in range(300)]  # more than two cache blocks of 128
    one = Sampling(max_round_tokens=8)
    await engine.generate(long_prompt, one)
    busy = asyncio.create_task(engine.generate(PROMPT, Sampling(max_round_tokens=400)))
    await update(engine, new, 8)
    out = await engine.generate(long_prompt, one)
    expected = reference_logprobs(new, [*long_prompt, *out.token_ids])[len(long_prompt) - 1 :]
    np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)
    await busy


async def test_the_probe_follows_an_update_that_leaves_the_tied_head_unnamed(
    engine: Engine, tiny_policy: Path
) -> None:
    model = load_model(tiny_policy)
    perturb(model, seed=3, scale=0.1)
    assert "lm_head.weight" not in weights_of(model)
    await update(engine, model, 9)
    probe = await engine.probe(PROMPT)
    assert probe.version == 9
    np.testing.assert_allclose(probe.logprobs, reference_logprobs(model, PROMPT), atol=1e-4)


async def test_many_requests_at_once_keep_their_own_tokens(
    engine: Engine, tiny_policy: Path
) -> None:
    model = load_model(tiny_policy)
    await update(engine, model, 10)
    prompts = [[20 + i, *range(30, 50 + i)] for i in range(24)]
    outs = await asyncio.gather(
        *(engine.generate(p, Sampling(max_round_tokens=10 + i)) for i, p in enumerate(prompts))
    )
    for i, (prompt, out) in enumerate(zip(prompts, outs, strict=True)):
        assert len(out.token_ids) <= 10 + i
        expected = reference_logprobs(model, [*prompt, *out.token_ids])[len(prompt) - 1 :]
        np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)


async def test_a_prompt_that_is_too_long_fails_alone(engine: Engine) -> None:
    with pytest.raises(ValueError, match="512"):
        await engine.generate([20] * 600, Sampling(max_round_tokens=4))
    assert len((await engine.generate(PROMPT, Sampling(max_round_tokens=4))).token_ids) == 4


async def test_a_cancelled_caller_leaves_nothing_running(engine: Engine) -> None:
    task = asyncio.create_task(engine.generate(PROMPT, Sampling(max_round_tokens=400)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.between_steps(lambda llm: llm.get_num_unfinished_requests()) == 0


def test_a_request_that_waits_over_an_update_shares_prefixes_with_later_ones_only() -> None:
    """vLLM's own requests and cache, without an engine."""
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    init_none_hash(sha256)
    layer = FullAttentionSpec(block_size=128, num_kv_heads=1, head_size=8, dtype=torch.float32)
    blocks = KVCacheConfig(
        num_blocks=64, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["l"], layer)]
    )
    cache = KVCacheManager(
        blocks, max_model_len=512, scheduler_block_size=128, hash_block_size=128,
        enable_caching=True,
    )  # fmt: skip

    def request(name: str, salt: str, computed: int = 0) -> Any:
        made = Request(
            request_id=name,
            prompt_token_ids=list(range(300)),
            sampling_params=SamplingParams(max_tokens=4),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=get_request_block_hasher(128, sha256),
        )
        made.num_computed_tokens = computed
        return made

    def cached(asking: Any) -> int:
        return int(cache.get_computed_blocks(asking)[1])

    def computes(asking: Any) -> None:
        cache.allocate_slots(asking, 300)
        cache.free(asking)

    computes(request("before", "update-0"))
    waiting, running = request("waiting", "update-0"), request("running", "update-0", computed=299)
    assert cached(waiting) == 256
    scheduler = SimpleNamespace(requests={"waiting": waiting, "running": running})
    core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    renew_salts(SimpleNamespace(engine_core=core), "update-1")
    assert (cached(waiting), cached(running)) == (0, 256)
    computes(request("after", "update-1"))
    assert cached(waiting) == 256


# An engine of its own takes the place of the shared one in this process: these are last.


async def test_without_a_spare_model_the_engine_stands_still_and_is_as_exact(
    tiny_policy: Path,
) -> None:
    engine = Engine(policy_config(tiny_policy), replace(ROLLOUT, spare_model=False), seed=0)
    try:
        assert await engine.between_steps(spare_of) is None
        model = load_model(tiny_policy)
        perturb(model, seed=4, scale=0.1)
        await update(engine, model, 1)
        probe = await engine.probe(PROMPT)
        np.testing.assert_allclose(probe.logprobs, reference_logprobs(model, PROMPT), atol=1e-4)
    finally:
        engine.close()


async def test_a_request_that_waited_over_an_update_reads_no_prefix_of_older_weights(
    tiny_policy: Path,
) -> None:
    engine = Engine(policy_config(tiny_policy), replace(ROLLOUT, max_num_seqs=1), seed=0)
    try:
        old, new = load_model(tiny_policy), load_model(tiny_policy)
        perturb(new, seed=2, scale=0.1)
        await update(engine, old, 1)
        long_prompt = [20 + n % 200 for n in range(300)]
        one = Sampling(max_round_tokens=8)
        await engine.generate(long_prompt, one)
        running = asyncio.create_task(engine.generate(PROMPT, Sampling(max_round_tokens=400)))
        waiting = asyncio.create_task(engine.generate(long_prompt, one))
        await asyncio.sleep(0)  # both are on their way before the update is
        await update(engine, new, 2)
        assert not running.done()
        out = await waiting
        expected = reference_logprobs(new, [*long_prompt, *out.token_ids])[len(long_prompt) - 1 :]
        np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)
        await running
    finally:
        engine.close()


async def test_with_recompute_the_tokens_after_an_update_are_those_of_the_new_weights_alone(
    tiny_policy: Path,
) -> None:
    """As if the new weights had read the whole text: no key or value of the old ones is left."""
    recompute = replace(ROLLOUT, kv_on_update="recompute")
    engine = Engine(policy_config(tiny_policy), recompute, seed=0)
    try:
        new = load_model(tiny_policy)
        perturb(new, seed=1, scale=0.1)
        await update(engine, load_model(tiny_policy), 1)
        await load(engine, new)  # may take longer than the generations
        running = [
            asyncio.create_task(engine.generate([*PROMPT, i], Sampling(max_round_tokens=300)))
            for i in (30, 31)
        ]
        before = engine.stats()["busy_s"]
        while engine.stats()["busy_s"] < before + 0.05:
            await asyncio.sleep(0.005)
        await engine.finish_weight_update(2)
        for out, i in zip(await asyncio.gather(*running), (30, 31), strict=True):
            switch = int((out.versions == 1).sum())
            assert 0 < switch < len(out.versions)
            expected = reference_logprobs(new, [*PROMPT, i, *out.token_ids])[len(PROMPT) :]
            np.testing.assert_allclose(out.logprobs[switch:], expected[switch:], atol=1e-4)
    finally:
        engine.close()


async def test_a_failed_update_ends_the_engine_and_every_caller_hears_of_it(
    tiny_policy: Path,
) -> None:
    engine = Engine(policy_config(tiny_policy), ROLLOUT, seed=0)
    sampling = Sampling(max_round_tokens=400)
    go_on = threading.Event()  # no request ends before the failure
    held_up = asyncio.create_task(engine.between_steps(lambda llm: go_on.wait(60)))
    running = [asyncio.create_task(engine.generate(PROMPT, sampling)) for _ in range(16)]
    await asyncio.sleep(0)
    await engine.start_weight_update()
    with pytest.raises(Exception, match="nonsense"):
        await engine.receive_weights({"nonsense": 1})
    go_on.set()
    assert await held_up
    for request in running:
        with pytest.raises(InfrastructureError, match="engine is down"):
            await request
    with pytest.raises(InfrastructureError, match="engine is down"):
        await engine.generate(PROMPT, Sampling())
    assert engine.failure is not None
