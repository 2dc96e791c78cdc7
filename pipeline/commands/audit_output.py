"""What the audit command says: the judge's settings, notes, and tables for the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.config import GleanerConfig
from pipeline.judging.config import JudgeConfig
from pipeline.judging.judged import SIGNALS
from pipeline.judging.members import judge_members
from pipeline.judging.repeats import Asked

__all__ = ["audit_notes", "audit_tables", "judge_settings"]

_MODELS = ("openai", "vllm")
_SETTINGS = (
    "name",
    "model",
    "prompt",
    "rounds",
    "temperature",
    "samples",
    "combine",
    "max_tokens",
    "max_attempts",
    "max_model_len",
    "dtype",
    "structured",
    "base_url",
)


def judge_settings(judge: JudgeConfig) -> dict[str, Any]:
    """What the verdicts depend on. An address is said without the name and password, or the query,
    that it may have; an empty one of an endpoint is that of OPENAI_BASE_URL."""
    settings = {key: getattr(judge, key) for key in _SETTINGS}
    if judge.name in ("openai", "ensemble"):
        settings["base_url"] = judge.base_url or os.environ.get("OPENAI_BASE_URL", "")
    if judge.flip_probability:
        settings["flip_probability"] = judge.flip_probability
    if judge.name == "ensemble":
        settings["members"] = [_said(dict(member)) for member in judge.members]
    return _said(settings)


def _said(settings: dict[str, Any]) -> dict[str, Any]:
    if not settings.get("base_url"):
        return settings
    url = urlsplit(str(settings["base_url"]))
    plain = urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
    return {**settings, "base_url": plain}


def _backends(judge: JudgeConfig) -> list[str]:
    """The judge's name, or those of an ensemble's members."""
    return [member.name for member in judge_members(judge)]


def audit_notes(
    config: GleanerConfig, numbers: Mapping[str, Any], asked: Asked, traces: int
) -> list[str]:
    """What a reader of the numbers should bear in mind; ``traces`` were to be judged."""
    return list(_notes(config, numbers, asked, traces))


def _notes(
    config: GleanerConfig, numbers: Mapping[str, Any], asked: Asked, traces: int
) -> Iterator[str]:
    counts, cost = numbers["counts"], numbers["cost"]
    if asked.error is not None:
        done = sum(map(len, asked.verdicts))
        yield (
            f"ended early, after {done:,} of {config.audit.repeats * traces:,} trajectories: "
            f"{asked.error}"
        )
    backends = _backends(config.judge)
    if config.audit.repeats > 1 and set(backends) == {"evidence"}:
        yield "audit.repeats: the evidence judge is a rule; it says the same every time"
    elif config.audit.repeats > 1 and _is_greedy(config.judge):
        yield (
            "audit.repeats at temperature 0: a greedy model nearly repeats itself, so consistency "
            "and calibration say little; set judge.temperature above 0"
        )
    if "evidence" in backends and "evidence" in numbers["labelled_by"]:
        if set(backends) == {"evidence"}:
            yield "the labels are those of the evidence judge itself: agreement is no evidence"
        else:
            yield (
                "labels are those of the evidence judge, which is a member of this ensemble: in so "
                "far the judge agrees with itself, and agreement is no evidence"
            )
    if counts["without_verdict"]:
        yield (
            f"{counts['without_verdict']:,} of {counts['asked']:,} asks brought no verdict and are "
            "in no agreement; run.log says why"
        )
    if cost["cache_hits"]:
        yield (
            f"{cost['cache_hits']:,} rounds were known already (judge.cache, or an equal round): "
            "the cost is that of this audit, less than that of the judge"
        )


def _is_greedy(judge: JudgeConfig) -> bool:
    """Whether a language model in it answers at temperature 0."""
    return any(m.name in _MODELS and m.temperature == 0 for m in judge_members(judge))


def audit_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Signals and their confusion; by round number, by length, and by kind of round where there are
    several; then repeats and cost."""
    yield _signals(summary)
    yield _confusion(summary)
    yield _errors("number of round", "round", [(f"{e['round']}", e) for e in summary["by_round"]])
    by_length = [("{} to {}".format(*e["chars"]), e) for e in summary["by_length"]]
    yield _errors("length of round", "characters", by_length)
    if len(summary["by_kind"]) > 1:
        yield _errors("kind of round", "kind", [(e["kind"], e) for e in summary["by_kind"]])
    if summary["consistency"]:
        yield _repeats(summary)
    yield _cost(summary)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _signals(summary: Mapping[str, Any]) -> Table:
    table = _table(
        f"{summary['judge']['name']} judge against labels, {summary['counts']['rounds']:,} rounds "
        f"of {summary['questions']:,} questions, 95 % intervals",
        "",
        *SIGNALS,
    )
    found = [summary["signals"][signal] for signal in SIGNALS]
    table.add_row("agreement", *(share_text(f["agreement"]) for f in found))
    table.add_row("kappa", *(number_text(f["kappa"]) for f in found))
    for key in ("recall", "precision"):
        for label in ("1", "0"):
            table.add_row(f"{key} {label}", *(share_text(f[key][label]) for f in found))
    table.add_row("1s, labels", *(share_text(f["label_share"]) for f in found))
    table.add_row("1s, verdicts", *(share_text(f["verdict_share"]) for f in found))
    return table


def _confusion(summary: Mapping[str, Any]) -> Table:
    table = _table("verdicts, counted", "", *(f"{signal} {v}" for signal in SIGNALS for v in "01"))
    for label in (0, 1):
        counted = (summary["signals"][signal]["confusion"][label] for signal in SIGNALS)
        table.add_row(f"label {label}", *(f"{n:,}" for row in counted for n in row))
    return table


def _errors(by: str, column: str, groups: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """``groups``: entries of a breakdown by their names."""
    table = _table(
        f"agreement by {by}, and excess of 1s over the labels in points",
        *(column, "rounds", "agreement u", "agreement v", "excess u", "excess v"),
    )
    for name, entry in groups:
        found = [entry[signal] for signal in ("utility", "correctness")]
        agreement = (share_text(f["agreement"]) for f in found)
        excess = (points_text(f["excess"]) for f in found)
        table.add_row(name, f"{entry['rounds']:,}", *agreement, *excess)
    return table


def _repeats(summary: Mapping[str, Any]) -> Table:
    table = _table(f"{summary['repeats']} repeats", "", *SIGNALS)
    same = [summary["consistency"][signal] for signal in SIGNALS]
    confidence = [summary["calibration"][signal] for signal in SIGNALS]
    table.add_row("all equal", *(share_text(f["unanimous"]) for f in same))
    table.add_row("two equal", *(share_text(f["pairwise"]) for f in same))
    table.add_row("Brier score", *(number_text(f["brier"]) for f in confidence))
    table.add_row("ECE", *(number_text(f["ece"]) for f in confidence))
    return table


def _cost(summary: Mapping[str, Any]) -> Table:
    table = _table("cost", "", "a round", "in all")
    for name, total in summary["cost"]["total"].items():
        table.add_row(name, f"{summary['cost']['a_round'][name]:.4g}", f"{total:,.6g}")
    return table


def share_text(estimate: Mapping[str, Any]) -> str:
    """
    >>> share_text({"value": 0.5, "low": 0.25, "high": 0.75, "n": 8})
    '50.0 % (25 to 75)'
    >>> share_text({"value": None, "low": None, "high": None, "n": 0})
    '-'
    >>> share_text({"value": 0.5, "low": None, "high": None, "n": 1})
    '50.0 % (no interval)'
    """
    return _estimated(estimate, "{:.1f} %", "{:.0f}", 100)


def points_text(estimate: Mapping[str, Any]) -> str:
    """
    >>> points_text({"value": 0.055, "low": -0.005, "high": 0.0754, "n": 8})
    '+5.5 (-0.5 to +7.5)'
    """
    return _estimated(estimate, "{:+.1f}", "{:+.1f}", 100)


def number_text(estimate: Mapping[str, Any]) -> str:
    """
    >>> number_text({"value": 0.5, "low": 0.25, "high": 0.75, "n": 8})
    '0.50 (0.25 to 0.75)'
    """
    return _estimated(estimate, "{:.2f}", "{:.2f}", 1)


def _estimated(estimate: Mapping[str, Any], value: str, end: str, factor: int) -> str:
    """The value, and the ends of its interval, each in its form and times ``factor``."""
    if estimate["value"] is None:
        return "-"
    said = value.format(factor * estimate["value"])
    if estimate["low"] is None:
        return f"{said} (no interval)"
    low, high = (end.format(factor * estimate[key]) for key in ("low", "high"))
    return f"{said} ({low} to {high})"
