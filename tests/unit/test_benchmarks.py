"""What the benchmarks make of their measurements, by numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.asynchrony import summarise, where_time_went
from benchmarks.faults import FAULTS
from benchmarks.layout import rows_of
from benchmarks.peers import options_of, ratios_of, tune_peer
from benchmarks.stack_bench import Moment
from benchmarks.varlen_attention import flash_attn_varlen_func
from pipeline.ledger import FILE_NAME, Ledger
from pipeline.trace import Span


def test_where_the_time_of_a_turn_went() -> None:
    spans = {
        "driver": [Span("waiting for groups", 0.0, 6.0), Span("at train step 1", 6.0, 10.0)],
        "rollout-0": [
            Span("rollout", 0.0, 9.0),  # a call: it waits for searches, too
            Span("generate", 0.0, 2.0, "engine"),
            Span("generate", 3.0, 4.0, "engine"),
            Span("weight update", 9.0, 10.0, "engine"),
        ],
        "retriever-0": [Span("search", 2.0, 3.0), Span("ping", 4.0, 5.0)],
        "judge-0": [Span("judge", 2.5, 5.5), Span("judge", 7.0, 8.0)],
    }
    shares = where_time_went(spans, 0.0, 10.0)
    assert shares == pytest.approx(
        {
            "learner_idle": 0.6,
            "rollout_idle": 0.6,  # it generates or takes weights in 0-2, 3-4 and 9-10
            "retrieval_exposed": 0.1,  # 2-3
            "judge_exposed": 0.15,  # 4-5.5: before that a search goes on or the engine generates
        }
    )


def test_what_was_spent_in_between() -> None:
    before = Moment(10.0, {"rollout": 1.0}, {"judge/rounds": 5.0})
    after = Moment(14.0, {"rollout": 4.0, "learner": 2.0}, {"judge/rounds": 9.0})
    assert after.since(before) == Moment(
        4.0, {"rollout": 3.0, "learner": 2.0}, {"judge/rounds": 4.0}
    )


def turn(
    staleness: int, seconds: float, finished: float, latency: str = "none"
) -> dict[str, object]:
    return {
        "latency": latency, "staleness": staleness, "seconds_a_step": seconds, "limit_s": 8.0,
        "played_trajectories": finished, "stalls_s": [0.001, 0.003], "binding": "rollout alone",
        "trained_trajectories_per_s": 1.0, "phi": 8.0 / seconds, "cpu_share": 0.5,
        "learner_idle": 0.1, "rollout_idle": 0.2, "retrieval_exposed": 0.0, "judge_exposed": 0.0,
    }  # fmt: skip


def test_staleness_is_compared_round_by_round_for_the_same_work() -> None:
    turns = [
        turn(staleness, seconds, finished, latency)
        for latency in ("none", "200 ms")
        # the second round played twice as much: 20 s for it are as quick as 10
        for staleness, seconds, finished in [
            *((0, 12.0, 100.0), (1, 10.0, 100.0), (2, 9.0, 100.0)),
            *((0, 12.0, 100.0), (1, 20.0, 200.0), (2, 9.0, 100.0)),
        ]
    ]
    rows = {(r["latency"], r["staleness"]): r for r in summarise(turns)}
    assert rows["none", 1]["speedup"] == pytest.approx({"median": 1.2, "low": 1.2, "high": 1.2})
    assert rows["200 ms", 0]["speedup"]["median"] == 1.0
    assert rows["none", 0]["ceiling"] == pytest.approx(12.0 / 8.0)
    assert rows["none", 2]["stall_ms"][50] == pytest.approx(2.0)


def test_peers_are_compared_by_trained_trajectories_and_by_those_that_teach() -> None:
    pair = {
        "ours": {"seconds": 10.0, "cpu_s": 20.0, "signal_share": 1.0},
        "theirs": {"seconds": 50.0, "cpu_s": 60.0, "signal_share": 0.5},
    }
    ratios = ratios_of([pair])
    assert ratios["per_second"]["median"] == 5.0
    assert ratios["per_cpu_second"]["median"] == 3.0
    assert ratios["per_second_with_signal"]["median"] == 10.0


def test_each_peer_has_options_of_its_own() -> None:
    options = {"grpo.rows": "8", "async_grpo.rows": "64", "async_grpo.staleness": "2"}
    assert options_of("grpo", options) == [
        "generate=transformers,vllm",
        "rows=8",
        "threads=1,2",
    ]
    assert options_of("async_grpo", options) == ["rows=64", "threads=1,2", "staleness=2"]


def test_a_peer_is_compared_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"rows=16 threads=1": 9.0, "rows=16 threads=2": 7.0, "rows=64 threads=1": 8.0}
    monkeypatch.setattr(
        peers,
        "measure_peer",
        lambda *given: {"seconds": times.get(" ".join(given[-1]), 9.5), "cpu_s": 1.0},
    )
    tried = tune_peer(peers.PEERS["grpo"], [], ["rows=16,64", "threads=1,2"])
    assert [t["options"] for t in tried[:2]] == [["rows=16", "threads=2"], ["rows=64", "threads=1"]]
    assert len(tried) == 4
    assert tune_peer(peers.PEERS["grpo"], [], ["rows=8"]) == [{"options": ["rows=8"]}]


def test_packed_attention_equals_that_of_each_sequence_alone() -> None:
    torch.manual_seed(0)
    lengths = [(3, 3), (2, 5), (1, 4)]  # the last queries of 3, 5 and 4 tokens
    query, (key, value) = torch.randn(6, 4, 8), torch.randn(2, 12, 2, 8)
    packed = flash_attn_varlen_func(
        query, key, value, torch.tensor([0, 3, 5, 6]), torch.tensor([0, 3, 8, 12]), 3, 5,
        softmax_scale=0.5, causal=True,
    )  # fmt: skip
    q0 = k0 = 0
    for num_queries, num_keys in lengths:
        for i in range(num_queries):
            visible = slice(k0, k0 + num_keys - num_queries + i + 1)
            for head in range(4):
                scores = 0.5 * key[visible, head // 2] @ query[q0 + i, head]
                expected = scores.softmax(0) @ value[visible, head // 2]
                torch.testing.assert_close(packed[q0 + i, head], expected)
        q0, k0 = q0 + num_queries, k0 + num_keys


def test_layouts_are_compared_with_the_default_one() -> None:
    turns = [
        {"layout": "cpu", "ms": 20.0, "cpu_ms": 30.0, "cpu_share": 0.75},
        {"layout": "cpu_two_threads", "ms": 25.0, "cpu_ms": 60.0, "cpu_share": 0.9},
    ]
    default, other = rows_of(turns, ["cpu", "cpu_two_threads"])
    assert default["speedup_ms"]["median"] == 1.0
    assert (other["speedup_ms"]["median"], other["speedup_cpu_ms"]["median"]) == (0.8, 0.5)


class RunWithoutGroups:
    """Its first group is admitted while somebody waits."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.ledger = Ledger(run_dir / FILE_NAME, groups_per_step=2, max_staleness=1)

    def processes(self, name: str) -> list[tuple[str, int]]:
        return [(name, 12345678)]

    def wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        assert not condition()
        self.ledger.admit(0, "q", 0)
        assert condition()


def test_the_driver_is_struck_while_a_group_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = next(f for f in FAULTS if f.name == "kill-driver")
    run, struck = RunWithoutGroups(tmp_path), []
    monkeypatch.setattr("os.kill", lambda *args: struck.append((args, run.ledger.view().rows)))
    with fault.injected(run):  # type: ignore[arg-type]
        (args, rows) = struck[0]
    assert args == (12345678, fault.signal)
    assert [row.state for row in rows] == ["rolling"]
    run.ledger.end()
