"""The model card of the small judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import sha256_of
from pipeline.judging.training_config import JudgeTrainingConfig

__all__ = ["judge_card"]

_HEAD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Gleaner's small judge

A language model of the Qwen3 architecture that scores the search rounds of Gleaner's default
task: was what a round retrieved needed and new (utility), was its reasoning supported and its
query useful (correctness)? It exists so that judging by a language model can be exercised and
measured for real on two CPU cores. It knows the 46 relations of that task and the ways of one
small policy; it is useless as a judge of anything else. For other tasks take a large model
([docs/judge.md](../../docs/judge.md)).

## How it answers

To the prompt `{prompt}` (`pipeline/judging/prompts/{prompt}.yaml`) with JSON, its reasons
first:

```
{{"rationale":"Plan: country, capital. Round 1: country of Nakuru is Kenya. Round 2: capital of \
Kenya is Nairobi. Needed.","utility":1,"correctness":1}}
```

## Training

- command: `{command}` (seed {seed}, {workers} workers of {threads} thread, {minutes:.0f}
  minutes after the rollouts)
- it goes on from the weights of the small policy (`{start}`), which can read passages and
  follow plans; {pieces} pieces of the JSON around traces and verdicts became tokens of their
  own
- {tokens:.1f} M tokens of rollouts of {policies} on the training questions, labelled by the
  rule over known evidence; in {perturbed:.0%} of them something is changed and the label given
  anew (guessed names, repeated, empty and foreign searches, missing passages, texts that speak
  to the judge), {substitute:.0%} are retold with invented names, {together:.0%} are judged in one
  answer; learning rate {lr:.0e}
- `model.safetensors` sha256 `{digest}`
"""

_CANARIES = """
## Canaries

`canaries.jsonl` holds {canaries} labelled traces of the policy on dev questions, for
`judge.canaries`. They were not trained on.
"""

_LICENCE = """
## Text and licence

It was trained on text of the default task; its sources and their licences are in the policy's
card. The weights and this card are published under the project's licence (Apache-2.0).
"""


def judge_card(
    settings: JudgeTrainingConfig,
    model: Path,
    figures: Mapping[str, Any],
    *,
    command: str,
    seconds: float,
    pieces: int,
    canaries: int,
) -> str:
    """README.md of the judge's directory (Markdown). ``figures`` maps a way of asking to its
    audit (``pipeline.judging.audit.audit_summary``)."""
    head = _HEAD.format(
        prompt=settings.prompt,
        command=command,
        seed=settings.seed,
        workers=settings.workers,
        threads=settings.threads,
        minutes=seconds / 60,
        start=settings.start,
        pieces=pieces,
        tokens=settings.schedule.tokens / 1e6,
        policies=", ".join(f"`{policy}`" for policy in settings.policies),
        perturbed=settings.perturbed,
        substitute=settings.substitute,
        together=settings.together,
        lr=settings.schedule.lr,
        digest=sha256_of(model / "model.safetensors"),
    )
    parts = [head, _measured(figures), _CANARIES.format(canaries=canaries), _LICENCE]
    return "".join(part for part in parts if part)


def _measured(figures: Mapping[str, Any]) -> str:
    if not figures:
        return ""
    some = next(iter(figures.values()))
    lines = [
        "\n## Measured\n",
        f"On rollouts of the small policy on {some['questions']} test questions "
        f"({some['counts']['rounds']} search rounds), by an engine of a run; labels by the rule "
        "over known evidence. 95 % intervals.\n",
        "| asked | signal | agreement | kappa | recall of 0 | recall of 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, audit in figures.items():
        for signal in ("utility", "correctness", "contribution"):
            found = audit["signals"][signal]
            cells = (
                _percent(found["agreement"]),
                _number(found["kappa"]),
                _percent(found["recall"]["0"]),
                _percent(found["recall"]["1"]),
            )
            lines.append(f"| {way} | {signal} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{100 * estimate['value']:.1f} % (no interval)"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _number(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.2f} (no interval)"
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"
