"""The learner's arithmetic, on the real DeepSpeed engine in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors import deepspeed_engine
from actors.weight_digest import digest_tensors
from pipeline.batch import make_rank_batches, to_samples
from pipeline.config import LearnerConfig
from pipeline.credit import Correction, Objective
from pipeline.errors import GleanerError
from tests.support.learner_cases import (
    SGD,
    credit,
    make_rank,
    on_policy,
    plain_loss,
    step,
    weights_of,
)


def plain_model(policy: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_loss_and_gradient_at_staleness_0_equal_a_plain_computation(tiny_policy: Path) -> None:
    rank, model = make_rank(tiny_policy, SGD), plain_model(tiny_policy)
    batch = credit()
    samples = on_policy(rank, batch.samples)
    before = weights_of(rank)
    metrics = step(rank, samples, batch.normaliser)
    loss = plain_loss(model, samples, batch.normaliser, temperature=0.7)
    loss.backward()
    gradient = flat({n: p.grad for n, p in model.named_parameters()})
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["logprob_difference_max"] < 1e-5
    assert relative(before - weights_of(rank), gradient) < 1e-4  # differences of float32 weights


def test_one_deepspeed_step_equals_a_plain_torch_step(tiny_policy: Path) -> None:
    config = LearnerConfig(lr=1e-3, weight_decay=0.1, max_grad_norm=0.05)
    rank, model = make_rank(tiny_policy, config), plain_model(tiny_policy)
    batch = credit()
    samples = on_policy(rank, batch.samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(2):
        metrics = step(rank, samples, batch.normaliser)
        optimizer.zero_grad()
        plain_loss(model, samples, batch.normaliser, temperature=0.7).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        assert norm > 0.05  # clipping is really at work
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    expected = flat(dict(model.named_parameters()))
    assert relative(weights_of(rank), expected) < 1e-5


def test_micro_batches_of_any_size_give_the_same_gradient(tiny_policy: Path) -> None:
    batch = credit()
    changes = []
    for tokens in (1, 40, 100_000):
        rank = make_rank(tiny_policy, SGD)
        before = weights_of(rank)
        # scaled up, so that what float32 weights lose of the difference does not matter
        step(rank, batch.samples, batch.normaliser / 1000, tokens)
        changes.append(before - weights_of(rank))
    assert relative(changes[0], changes[2]) < 1e-5
    assert relative(changes[1], changes[2]) < 1e-5


def test_checkpointing_does_not_change_the_gradient(tiny_policy: Path) -> None:
    batch = credit()
    norms = [
        step(make_rank(tiny_policy, config), batch.samples, batch.normaliser)["grad_norm"]
        for config in (SGD, replace(SGD, gradient_checkpointing=True))
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_logits_are_made_only_where_a_token_is_trained(tiny_policy: Path) -> None:
    rank = make_rank(tiny_policy, SGD)
    rows = []
    head = rank._model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    samples = credit(1).samples
    step(rank, samples, 1.0)
    trained = {tuple(s.token_ids[:p]) for s in samples for p in np.flatnonzero(s.loss_mask)}
    assert sum(rows) == len(trained)  # one row a distinct prefix with a trained next token
    assert sum(rows) < sum(len(s.token_ids) for s in samples) / 2


def test_the_probe_is_the_plain_distribution_without_temperature(tiny_policy: Path) -> None:
    tokens = np.arange(5, 45, dtype=np.int32)
    probe = make_rank(tiny_policy, SGD).probe_logprobs(tokens)
    ids = torch.as_tensor(tokens, dtype=torch.long)
    with torch.no_grad():
        logits = plain_model(tiny_policy)(ids[None]).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
    np.testing.assert_allclose(probe, expected.numpy(), atol=1e-5)


def test_the_kl_term_pulls_towards_the_reference(tiny_policy: Path) -> None:
    rank = make_rank(tiny_policy, replace(SGD, lr=0.05), objective=Objective(kl_coef=10.0))
    batch = credit(1)
    references = to_samples(
        batch.samples,
        rank.logprobs(make_rank_batches(batch.samples, 1.0, 1, 4096)[0], "reference"),
    )
    samples = [
        replace(
            s,
            ref_logprobs=r,
            sampler_logprobs=r,
            advantages=np.zeros_like(s.advantages) if i else s.advantages,
        )
        for i, (s, r) in enumerate(zip(batch.samples, references, strict=True))
    ]
    first = step(rank, samples, batch.normaliser)
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6)  # still the reference itself
    second = step(rank, samples, batch.normaliser)
    assert second["kl_reference"] > 1e-6
    only_kl = [replace(s, advantages=np.zeros_like(s.advantages)) for s in samples]
    for _ in range(3):
        last = step(rank, only_kl, batch.normaliser)
    assert last["kl_reference"] < second["kl_reference"]


def test_the_supervised_loss_is_the_mean_negative_log_likelihood(tiny_policy: Path) -> None:
    rank = make_rank(tiny_policy, SGD, objective=Objective(loss="nll"))
    samples = [
        replace(s, advantages=s.loss_mask.astype(np.float32))
        for s in on_policy(rank, credit(1).samples)
    ]
    tokens = float(sum(s.loss_mask.sum() for s in samples))
    expected = -sum(float(s.sampler_logprobs.sum()) for s in samples) / tokens
    assert step(rank, samples, tokens)["loss"] == pytest.approx(expected, rel=1e-5)
    assert step(rank, samples, tokens)["loss"] < expected


def test_without_a_kl_term_no_reference_is_loaded(tiny_policy: Path) -> None:
    rank = make_rank(tiny_policy, SGD)
    with pytest.raises(GleanerError, match="kl_coef is 0"):
        rank.logprobs(make_rank_batches(credit(1).samples, 1.0, 1, 99)[0], "reference")


def test_the_exported_policy_is_the_trained_one(tiny_policy: Path, tmp_path: Path) -> None:
    rank = make_rank(tiny_policy, SGD)
    step(rank, credit(1).samples, 1.0)
    target = tmp_path / "policy"
    target.mkdir()
    (target / "old").write_text("an earlier export")
    rank.export_policy(str(target))
    tensors, digest = rank.weights()
    exported = plain_model(target)
    loaded = {n: p.detach().numpy() for n, p in exported.named_parameters()}
    assert digest_tensors(loaded) == digest == digest_tensors(tensors)
    assert (target / "tokenizer.json").read_bytes() == (tiny_policy / "tokenizer.json").read_bytes()
    assert not (target / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]  # nothing half-written


def test_an_update_that_is_not_finite_is_refused(tiny_policy: Path) -> None:
    samples = credit(1).samples
    broken = [replace(samples[0], sampler_logprobs=np.full_like(samples[0].sampler_logprobs, -1e9))]
    with pytest.raises(GleanerError, match="not finite"):
        step(make_rank(tiny_policy, SGD), broken, 1.0)


def flat(tensors: dict[str, Any]) -> np.ndarray:
    return np.concatenate(
        [tensors[name].detach().numpy().ravel() for name in sorted(tensors)]
    ).astype(np.float64)


LORA = replace(SGD, lora_rank=4, lr=0.5)


def test_adapters_start_as_the_policy_and_only_they_are_trained(tiny_policy: Path) -> None:
    rank, whole = make_rank(tiny_policy, LORA), make_rank(tiny_policy, SGD)
    (before, digest), (plain, expected) = rank.weights(), whole.weights()
    assert list(before) == list(plain)
    assert digest == expected  # an untrained adapter changes nothing
    batch = credit()
    frozen = {n: p.detach().clone() for n, p in rank._model.named_parameters() if "lora" not in n}
    for _ in range(2):
        step(rank, batch.samples, batch.normaliser)
    after, _ = rank.weights()
    moved = {n for n in after if not np.array_equal(after[n], before[n])}
    assert moved == {n for n in after if "proj" in n}
    for name, value in frozen.items():
        torch.testing.assert_close(dict(rank._model.named_parameters())[name], value)


def test_zero_3_gathers_no_more_than_a_bucket_at_a_time(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make_rank(tiny_policy, replace(SGD, zero_stage=3))
    at_once = rank.digest()
    limit, gathered, gather = 40_000, [], deepspeed_engine._gathered
    monkeypatch.setattr(deepspeed_engine, "GATHER_BYTES", limit)

    def noting(bucket: Any) -> Any:
        gathered.append([deepspeed_engine._gathered_bytes(weight) for weight in bucket])
        return gather(bucket)

    monkeypatch.setattr(deepspeed_engine, "_gathered", noting)
    assert rank.digest() == at_once
    assert all(len(sizes) == 1 or sum(sizes) <= limit for sizes in gathered)
    assert len(gathered) > 2 and max(map(len, gathered)) > 1


def test_merged_weights_are_the_policy_with_its_adapters(tiny_policy: Path, tmp_path: Path) -> None:
    rank = make_rank(tiny_policy, LORA)
    batch = credit()
    for _ in range(2):
        step(rank, batch.samples, batch.normaliser)
    rank.export_policy(str(tmp_path / "policy"))
    tokens = np.arange(5, 45, dtype=np.int32)
    exported = make_rank(tmp_path / "policy", SGD)
    np.testing.assert_allclose(
        exported.probe_logprobs(tokens), rank.probe_logprobs(tokens), atol=1e-5
    )
    untrained = make_rank(tiny_policy, SGD).probe_logprobs(tokens)
    assert np.abs(rank.probe_logprobs(tokens) - untrained).max() > 1e-3


def test_with_adapters_the_reference_is_the_model_without_them(tiny_policy: Path) -> None:
    rank = make_rank(tiny_policy, LORA, objective=Objective(kl_coef=0.1))
    batch = credit(1)
    (all_of_it,) = make_rank_batches(batch.samples, 1.0, 1, 4096)
    start = to_samples(batch.samples, rank.logprobs(all_of_it, "current"))
    samples = [
        replace(s, ref_logprobs=r, sampler_logprobs=r)
        for s, r in zip(batch.samples, start, strict=True)
    ]
    for _ in range(2):
        step(rank, samples, batch.normaliser)
    reference = to_samples(batch.samples, rank.logprobs(all_of_it, "reference"))
    current = to_samples(batch.samples, rank.logprobs(all_of_it, "current"))
    for at_start, frozen, moved in zip(start, reference, current, strict=True):
        np.testing.assert_array_equal(at_start, frozen)
        assert np.abs(moved - frozen).max() > 1e-4


def test_the_proximal_policy_of_a_single_update_is_the_current_one(tiny_policy: Path) -> None:
    correction = Correction(kind="truncated", level="round", high=1.5)
    objective = Objective(recompute_proximal=True, correction=correction)
    batch = credit()
    noise = np.random.default_rng(0)
    sampled = [
        replace(
            s,
            sampler_logprobs=s.sampler_logprobs
            + noise.normal(0, 0.3, len(s.token_ids)).astype("f4"),
        )
        for s in on_policy(make_rank(tiny_policy, SGD), batch.samples)
    ]
    changes = []
    for given in (False, True):
        rank = make_rank(tiny_policy, SGD, objective=objective)
        samples = sampled
        if given:
            (whole,) = make_rank_batches(samples, 1.0, 1, 4096)
            current = to_samples(samples, rank.logprobs(whole, "current"))
            samples = [
                replace(s, proximal_logprobs=p) for s, p in zip(samples, current, strict=True)
            ]
        before = weights_of(rank)
        metrics = step(rank, samples, batch.normaliser / 1000, 40)
        changes.append(before - weights_of(rank))
    assert relative(changes[0], changes[1]) < 1e-5
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < metrics["correction_cut_fraction"] < 1
    assert metrics["effective_sample_size"] < 1
    assert metrics["effective_sample_size_stale_0"] == metrics["effective_sample_size"]


ADAM = LearnerConfig(lr=1e-3, schedule="linear")


@pytest.mark.parametrize(
    "config",
    [
        *(replace(ADAM, zero_stage=stage) for stage in (0, 1, 2, 3)),
        replace(ADAM, lora_rank=4),
        replace(ADAM, dtype="bfloat16", zero_stage=1),
    ],
    ids=["zero0", "zero1", "zero2", "zero3", "lora", "bfloat16"],
)
def test_a_checkpoint_goes_on_to_the_last_bit(
    tiny_policy: Path, tmp_path: Path, config: LearnerConfig
) -> None:
    """Two steps in a row, and one, a checkpoint, another rank, and the other: moments of AdamW,
    the place in the schedule of the learning rate and the random state are in it."""
    batch = credit()
    rank = make_rank(tiny_policy, config)
    step(rank, batch.samples, batch.normaliser)
    rank.save_checkpoint(str(tmp_path / "learner"))
    expected = step(rank, batch.samples, batch.normaliser)
    at_once = rank.digest()
    other = make_rank(tiny_policy, config)
    step(other, credit(1).samples, 1.0)  # whatever it did before
    other.load_checkpoint(str(tmp_path / "learner"))
    found = step(other, batch.samples, batch.normaliser)
    assert other.digest() == at_once
    assert (found["lr"], found["loss"]) == (expected["lr"], expected["loss"])
    assert other.stats()["trained_tokens"] == rank.stats()["trained_tokens"]
