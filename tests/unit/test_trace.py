"""The trace of a run: one track an actor, lanes for what overlaps, times from the first span on."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.trace import Recorder, Span, chrome_trace, write_trace


def lanes(trace: dict, actor: str) -> dict[str, list[int]]:
    """The lanes of each span name of an actor."""
    (pid,) = [
        e["pid"]
        for e in trace["traceEvents"]
        if e["name"] == "process_name" and e["args"]["name"] == actor
    ]
    found: dict[str, list[int]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == pid:
            found.setdefault(event["name"], []).append(event["tid"])
    return found


def test_what_overlaps_has_lanes_of_its_own_and_a_lane_is_used_again() -> None:
    spans = [Span("a", 10, 12), Span("b", 11, 15), Span("c", 12, 13), Span("d", 13, 14)]
    assert lanes(chrome_trace({"rollout-0": spans}), "rollout-0") == {
        "a": [0], "b": [1], "c": [0], "d": [0],
    }  # fmt: skip


def test_each_kind_of_lane_and_each_actor_stands_apart() -> None:
    trace = chrome_trace(
        {
            "rollout-0": [Span("rollout", 1, 3), Span("step", 1, 2, "engine")],
            "learner-0": [Span("train_step", 5, 6)],
        }
    )
    assert lanes(trace, "rollout-0") == {"rollout": [0], "step": [1]}
    assert lanes(trace, "learner-0") == {"train_step": [0]}
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["calls", "engine", "calls"]
    (late,) = [e for e in trace["traceEvents"] if e["name"] == "train_step"]
    assert (late["ts"], late["dur"]) == (4e6, 1e6)


def test_a_recorder_writes_what_a_browser_reads(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.add("judge", recorder.now())
    (span,) = recorder.spans()
    assert span.ended >= span.began > 1.7e9
    write_trace(tmp_path / "trace.json", {"judge-0": recorder.spans(), "retriever-0": []})
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
