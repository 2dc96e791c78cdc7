"""How a judge's engine is set up."""

import pytest

from actors.engine_chat import _rollout
from pipeline.judging.config import JudgeConfig


@pytest.mark.parametrize(("num_gpus", "eager"), [(0.0, True), (0.5, False), (2.0, False)])
def test_graphs_are_captured_on_a_gpu_alone(num_gpus: float, eager: bool) -> None:
    assert _rollout(JudgeConfig(num_gpus=num_gpus)).enforce_eager is eager
