"""The model card of the small policy, and the figures in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import sha256_of
from pipeline.summary import evaluation_summary
from pipeline.warmstart.config import WarmstartConfig
from pipeline.warmstart.diagnose import mistake_table

if TYPE_CHECKING:
    from pipeline.measure import Measured

__all__ = ["model_card", "policy_figures"]


def policy_figures(measured: Measured, signals: Mapping[str, Any]) -> dict[str, Any]:
    """The measured figures of one policy: exact match greedy, sampled and without search,
    the mistakes of the greedy answers by kind, and the judge's signals."""
    ways = {
        "greedy": measured.main,
        "sampled": measured.sampled,
        "without_search": measured.without_search,
    }
    figures: dict[str, Any] = {
        way: evaluation_summary(found.trajectories)
        for way, found in ways.items()
        if found is not None
    }
    shares = mistake_table(measured.main.flat())
    figures["mistakes"] = {str(kind): share for kind, share in shares.items()}
    figures["signals"] = dict(signals)
    return figures


def model_card(
    settings: WarmstartConfig,
    task_dir: Path,
    policy: Path,
    figures: Mapping[str, Any],
    command: str,
    seconds: float,
    *,
    history: str = "",
    measured_by: str = "the rollout engine of a run",
) -> str:
    """README.md of the policy directory (Markdown).

    ``history`` replaces the line on the command where a policy was not made by one run of it.
    """
    manifest = json.loads((task_dir / "manifest.json").read_text(encoding="utf-8"))
    sections = [
        _HEAD,
        _ARCHITECTURE.format(**_model_numbers(settings)),
        _INITIALISATION,
        _training(settings, manifest, policy, history or _made_by(settings, command, seconds)),
        _results(figures, measured_by),
        _sources(manifest.get("sources", {})),
    ]
    return "\n\n".join(s.strip() for s in sections if s) + "\n"


_HEAD = """
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Gleaner's small search policy

A language model of the Qwen3 architecture that knows one thing: to play a search episode
(`<think>`, `<search>`, `<information>`, `<answer>`) on Gleaner's default task. It exists so that
reinforcement learning can be watched in minutes on two CPU cores. It is warm-started with bad
habits **on purpose** and knows no facts: without search it answers next to nothing.
It is useless as a general language model.
"""

_ARCHITECTURE = """
## Architecture

`Qwen3ForCausalLM`: hidden size {hidden_size}, {num_layers} layers, {num_heads} heads /
{num_kv_heads} key-value heads of {head_dim}, feed-forward {intermediate_size}, tied embeddings,
rotary base {rope_theta:.0e}, {max_positions} positions, fp32. Tokenizer: byte-level BPE of
{vocab_size} tokens with single digits; the eight protocol tags are single tokens.
"""

_INITIALISATION = """
## Structured initialisation

The weights did **not** start from plain random numbers: before training, an induction head was
wired into layers 0 and 1 (a previous-token head on the fast rotary frequencies, and match-and-copy
heads on the slow ones; `pipeline/warmstart/induction.py`). Copying names out of passages is the
skill the task needs; wired so, the model copies most random repeated tokens before any training,
and from a plain initialisation it does not learn to in the time given here.
"""


def _model_numbers(settings: WarmstartConfig) -> dict[str, Any]:
    return dict(vars(settings.model))


def _made_by(settings: WarmstartConfig, command: str, seconds: float) -> str:
    return (
        f"- command: `{command}` (seed {settings.seed}, {settings.workers} workers of "
        f"{settings.threads} thread, {seconds / 60:.0f} minutes)"
    )


def _training(
    settings: WarmstartConfig, manifest: Mapping[str, Any], policy: Path, made_by: str
) -> str:
    sums = manifest.get("sha256", {})
    return f"""
## Training

{made_by}
- supervised, on scripted episodes of the training questions, loss on the policy's own tokens
  (weight 1) and on the questions and passages it reads (weight {settings.reading_weight:g}):
  {settings.clean.tokens / 1e6:.2f} M tokens of clean episodes (learning rate
  {settings.clean.lr:.0e}), then {settings.habits.tokens / 1e6:.2f} M with bad habits
  ({settings.habits.lr:.0e})
- data: train questions sha256 `{sums.get("train", "?")}`,
  corpus sha256 `{sums.get("corpus", "?")}`
- `model.safetensors` sha256 `{sha256_of(policy / "model.safetensors")}`

The habits (premature answers, redundant searches, off-relation and vague searches, giving up,
unsupported guesses) each belong to some of the asked relations and are the most likely action
there, decided at the one token after the relation's name, with the good action close behind
(docs/warmstart.md).
"""


def _results(figures: Mapping[str, Any], measured_by: str) -> str:
    if not figures:
        return "## Measured\n\nNot measured (`warmstart.measure=false`)."
    rows = [
        ("exact match, greedy", lambda f: _share(f["greedy"]["em"])),
        *(
            (f"... {hops} hops", lambda f, h=hops: _share(f["greedy"]["em_by_hops"][h]))
            for hops in figures["policy"]["greedy"]["em_by_hops"]
        ),
        ("exact match, temperature 1", lambda f: _share(f["sampled"]["em"])),
        ("pass@8, temperature 1", lambda f: _share(f["sampled"]["pass_at_k"])),
        ("exact match without search", lambda f: _share(f["without_search"]["em"])),
        ("redundant searches, greedy", lambda f: _share(f["greedy"]["redundant_searches"])),
        ("searches a question, greedy", lambda f: f"{f['greedy']['searches_per_question']:.2f}"),
    ]
    columns = ("policy", "clean")
    lines = ["## Measured", "", f"On the dev questions, by {measured_by}.", ""]
    lines += ["| | this policy | after the clean phase (the ceiling) |", "| --- | --- | --- |"]
    lines += [f"| {n} | " + " | ".join(get(figures[c]) for c in columns) + " |" for n, get in rows]
    lines += ["", "Its mistakes when greedy:", "", "| mistake | share |", "| --- | --- |"]
    lines += [f"| {kind} | {share:.1%} |" for kind, share in figures["policy"]["mistakes"].items()]
    return "\n".join([*lines, "", _signal_lines(figures["policy"]["signals"])])


def _share(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"


def _signal_lines(signals: Mapping[str, Any]) -> str:
    table, rounds = signals["table"], max(1, signals["rounds"])
    cells = {name: f"{count} ({count / rounds:.1%})" for name, count in table.items()}
    return f"""The evidence judge on {signals["trajectories"]} sampled trajectories
({signals["rounds"]} search rounds):

| | v = 0 | v = 1 |
| --- | --- | --- |
| u = 0 | {cells["u0v0"]} | {cells["u0v1"]} |
| u = 1 | {cells["u1v0"]} | {cells["u1v1"]} |"""


def _sources(sources: Mapping[str, Mapping[str, str]]) -> str:
    rows = "\n".join(
        f"| {s.get('attribution', '')} | {name} {s.get('version', '')} | "
        f"{s.get('text_licence', '')} |"
        for name, s in sources.items()
    )
    return f"""
## Text sources and licence

The training text was read from packages at set-up; none of it is in this repository.

| text | package | licence of the text |
| --- | --- | --- |
{rows}

The weights and this card are published under the project's licence (Apache-2.0). Our position:
the weights hold no expressive part of the texts (without search the policy answers almost no
question, see above), so we do not treat them as an adaptation of the texts; the tokenizer's
vocabulary holds only words and word pieces. Who sees that differently can make the policy from
scratch, with the command above, from text of their own.
"""
