"""``python -m benchmarks.judge_results NAME=RUN_DIR ...``: keep what an audit or an attack found.

Each run directory's ``audit.json`` or ``attacks.json`` becomes
``benchmarks/results/judge/NAME.json``: the same figures, rounded, and of the traces' file only its
name. ``docs/judge.md`` quotes these files, and tests/unit/test_judge_figures.py compares the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text

__all__ = ["RESULTS", "kept"]

RESULTS = Path(__file__).parent / "results" / "judge"
_WRITTEN = ("audit.json", "attacks.json")


def kept(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of ``audit.json`` or ``attacks.json``.

    >>> kept({"source": "/home/ann/run/traces.jsonl", "attacks": [{"rate": 0.123456789}]})
    {'source': 'traces.jsonl', 'attacks': [{'rate': 0.123457}]}
    """
    return _rounded({**summary, "source": Path(summary["source"]).name})


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value


def _keep(name: str, run_dir: Path) -> Path:
    (written,) = (run_dir / f for f in _WRITTEN if (run_dir / f).exists())
    summary = json.loads(written.read_text(encoding="utf-8"))
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(kept(summary), indent=1, ensure_ascii=False) + "\n")
    return path


def main() -> None:
    """See the module."""
    for argument in sys.argv[1:]:
        name, _, run_dir = argument.partition("=")
        print(_keep(name, Path(run_dir)))


if __name__ == "__main__":
    main()
