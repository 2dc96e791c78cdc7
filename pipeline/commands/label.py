"""``python -m pipeline label traces=FILE ...``: labels by people.

    python -m pipeline label traces=outputs/RUN/traces.jsonl label.export=rounds.html label.limit=50
    python -m pipeline label traces=outputs/RUN/traces.jsonl label.import_from=labels-NAME.jsonl \\
        label.output=labelled.jsonl
    python -m pipeline audit judge=... traces=labelled.jsonl

The export is a page to label on, offline, and ``rounds.jsonl`` beside it: the same rows with null
labels, for an editor. Neither shows the labels that the file may have. The page lets a person
download rows; the import puts them in place of the labels (``pipeline/judging/labels.py`` has the
format and the checks). Rounds that nobody labelled have no label afterwards, and traces without any
are left out. A file holds the labels of one person.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic import write_lines
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.judging.labels import blank_rows, merge_labels, read_labels
from pipeline.judging.traces import LabelledTrace, read_traces, write_traces
from pipeline.report.label_page import write_label_page

__all__ = ["export_labels", "import_labels", "run", "sample_traces"]

_SEED = "traces to label"


def run(config: GleanerConfig) -> None:
    """Export or import. Raises UserError for unfit input."""
    label = config.label
    if not label.traces or not (label.export or label.import_from):
        raise UserError(
            "label needs traces=FILE, and label.export=FILE.html or label.import_from=FILE.jsonl"
        )
    traces = [t for t in read_traces(Path(label.traces)) if t.labels]
    _check_ids(label.traces, traces)
    if label.export:
        export_labels(sample_traces(traces, label.limit), Path(label.export))
    else:
        output = Path(label.output or Path(config.run_dir) / "labelled.jsonl")
        if output.resolve() == Path(label.traces).resolve():
            raise UserError(f"label.output={output} is label.traces itself; choose another file")
        import_labels(traces, Path(label.import_from), output)


def sample_traces(traces: Sequence[LabelledTrace], limit: int) -> list[LabelledTrace]:
    """``limit`` traces at random, the same ones every time, in their order; 0: all."""
    if not limit or limit >= len(traces):
        return list(traces)
    places = random.Random(_SEED).sample(range(len(traces)), limit)
    return [traces[place] for place in sorted(places)]


def export_labels(traces: Sequence[LabelledTrace], page: Path) -> None:
    """Write the page, and the rows beside it. Raises UserError for another name than FILE.html."""
    if page.suffix != ".html":
        raise UserError(f"label.export={page}: the page's name must end in .html")
    rows = page.with_suffix(".jsonl")
    if rows.exists():
        raise UserError(f"{rows} exists and may hold labels; choose another label.export")
    write_label_page(page, traces)
    write_lines(rows, (json.dumps(row, ensure_ascii=False) for row in blank_rows(traces)))
    print(f"{sum(len(t.labels) for t in traces):,} rounds to label: {page}, or {rows} in an editor")


def import_labels(traces: Sequence[LabelledTrace], labels: Path, output: Path) -> None:
    """Write the traces with a person's labels. Raises UserError where there is none, and where
    ``output`` exists: it may hold labels."""
    if output.exists():
        raise UserError(f"{output} exists and may hold labels; choose another label.output")
    human = read_labels(labels, traces)
    merged = merge_labels(traces, human)
    if not merged:
        raise UserError(f"{labels}: every row has a null label; nothing to import")
    write_traces(output, merged)
    print(
        f"{len(human.labels):,} rounds of {len(merged):,} traces are labelled, {human.skipped:,} "
        f"rows without labels skipped: {output}"
    )


def _check_ids(path: str, traces: Sequence[LabelledTrace]) -> None:
    """Labels find their trace by its id."""
    twice = [name for name, number in Counter(t.id for t in traces).items() if number > 1]
    if twice:
        raise UserError(f"{path}: the id {twice[0]!r} stands there twice; ids must be different")
