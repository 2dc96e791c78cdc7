"""The page on which a person labels rounds: blind, offline, in one file.

It holds questions, rounds and passages, and neither labels nor what else is known of them. What a
person enters stays in the browser (localStorage) until it is downloaded as the rows that
``pipeline.judging.labels.read_labels`` reads. The texts are untrusted: they travel as JSON data,
the page's one script (allowed by its digest) puts them in place as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.atomic import write_text
from pipeline.judging.labels import round_digest
from pipeline.judging.traces import LabelledTrace
from pipeline.judging.untrusted import visible_text
from pipeline.report.templating import TEMPLATES, page_environment

__all__ = ["render_label_page", "write_label_page"]


def write_label_page(path: Path, traces: Sequence[LabelledTrace]) -> None:
    """Write the page to ``path``: one file, whole or not at all."""
    write_text(path, render_label_page(traces))


def render_label_page(traces: Sequence[LabelledTrace]) -> str:
    """The page as HTML."""
    from markupsafe import Markup

    script = (TEMPLATES / "label.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = {"traces": [_shown(trace) for trace in traces]}
    key = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    return (
        page_environment()
        .get_template("label.html.j2")
        .render(
            data={"key": f"gleaner-labels-{key}", **data},
            script=Markup(script),
            script_digest=digest,
            rounds=sum(len(trace.labels) for trace in traces),
        )
    )


def _shown(trace: LabelledTrace) -> dict[str, Any]:
    """What a person may see of a trace."""
    trajectory = trace.trajectory
    return {
        "id": trace.id,
        "question": visible_text(trajectory.question.text),
        "rounds": [
            {
                "digest": round_digest(trace, number),
                "reasoning": visible_text(played.reasoning),
                "query": visible_text(played.query or ""),
                "passages": [
                    {"title": visible_text(p.title), "text": visible_text(p.text)}
                    for p in played.passages
                ],
            }
            for number, played in enumerate(trajectory.search_rounds, start=1)
        ],
    }
