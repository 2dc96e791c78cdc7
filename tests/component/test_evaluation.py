"""Evaluation and the fine-tuning baseline: how they end when they cannot go on."""

import itertools
from types import SimpleNamespace

import pytest

from pipeline.commands import rft
from pipeline.config import GleanerConfig
from pipeline.errors import GleanerError, InfrastructureError, UserError
from pipeline.evaluation import evaluate
from pipeline.progress import open_progress
from pipeline.types import Sampling
from tests.support.scripted import question


class Refusing:
    """A rollout pool in which every request ends with ``error``."""

    def __init__(self, error):
        self.error = error

    async def rollout(self, request):
        raise self.error


async def play(error):
    return await evaluate(
        Refusing(error),
        [question("Where is Lyon?", ["x"])] * 5,
        name="dev",
        sampling=Sampling(),
        samples=2,
        concurrency=8,
    )


async def test_a_users_error_ends_an_evaluation_as_itself():
    with pytest.raises(UserError, match="top_k is too large"):
        await play(UserError("top_k is too large"))


async def test_an_evaluation_that_lost_its_samples_is_refused():
    with pytest.raises(InfrastructureError, match="lost 10 of 10 samples"):
        await play(InfrastructureError("engine died"))


async def test_fine_tuning_gives_up_where_no_sample_is_ever_right(monkeypatch):
    async def none_correct(config, stack, asked):
        return []

    monkeypatch.setattr(rft, "_correct", none_correct)
    questions = itertools.repeat(question("Where is Lyon?", ["x"]))
    with (
        open_progress("none") as progress,
        pytest.raises(GleanerError, match="20 batches in a row"),
    ):
        await rft._fine_tune(GleanerConfig(), SimpleNamespace(), questions, progress)
