"""What an engine may compute in one step, by configuration."""

from __future__ import annotations

import pytest

from actors.vllm_io import scheduler_arguments
from pipeline.config_checks import to_config
from pipeline.overrides import compose_config


def arguments_of(*overrides: str) -> dict[str, object]:
    config = to_config(compose_config(["experiment=cpu_tiny", "run_dir=run", *overrides]))
    return scheduler_arguments(config.policy, config.rollout)


def test_by_default_vllm_decides_on_the_parts_of_a_prompt() -> None:
    arguments = arguments_of()
    assert arguments["enable_prefix_caching"] is True
    assert "enable_chunked_prefill" not in arguments
    assert "max_num_batched_tokens" not in arguments


@pytest.mark.parametrize("longest", [768, 9216])
def test_a_deterministic_engine_computes_prompts_whole_and_has_room_for_the_longest(
    longest: int,
) -> None:
    arguments = arguments_of("deterministic=true", f"policy.max_model_len={longest}")
    assert arguments["enable_prefix_caching"] is False
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] == max(longest, 4096)  # vLLM refuses less
