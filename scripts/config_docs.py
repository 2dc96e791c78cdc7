"""Write docs/configuration.md from the dataclasses and comments of pipeline/config.py, and of the
modules that it imports sections from.

python scripts/config_docs.py            # rewrite the file
python scripts/config_docs.py --check    # exit 1 where it is out of date
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "pipeline" / "config.py"
TARGET = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every key, its default in the schema and its meaning. This page is made from
`pipeline/config.py` and `pipeline/judging/config.py` by `python scripts/config_docs.py`; the values
of a run come from the YAML files in `conf/` and from overrides (`python -m pipeline trainer.steps=5
algorithm=grpo`), and `python -m pipeline --cfg job` prints them all. Changes of keys are listed in
CHANGELOG.md.
"""


def render() -> str:
    """The whole page."""
    sections = _sections(SOURCE)
    whole, lines = sections["GleanerConfig"]
    fields = {f: sections.get(ast.unparse(f.annotation)) for f in _fields(whole)}
    top = [(f.target.id, *_describe(f, lines)) for f, section in fields.items() if not section]
    parts = [HEAD, _table(top)]
    for field, section in fields.items():
        if section is None:
            continue
        node, lines = section
        parts.append(f"\n## {field.target.id}\n\n{ast.get_docstring(node)}\n")
        rows = [(f"{field.target.id}.{f.target.id}", *_describe(f, lines)) for f in _fields(node)]
        parts.append(_table(rows))
    return "\n".join(parts)


def _sections(source: Path) -> dict[str, tuple[ast.ClassDef, list[str]]]:
    """Classes by name, with the lines of their file: those of ``source``, and of modules of ours
    that it imports from."""
    text = source.read_text(encoding="utf-8")
    found: dict[str, tuple[ast.ClassDef, list[str]]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            found |= _sections(ROOT / f"{str(node.module).replace('.', '/')}.py")
        if isinstance(node, ast.ClassDef):
            found[node.name] = (node, text.splitlines())
    return found


def _fields(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    return (f for f in node.body if isinstance(f, ast.AnnAssign))


def _describe(field: ast.AnnAssign, lines: list[str]) -> tuple[str, str]:
    """Default and meaning; the comment stands behind the field, or above it."""
    default = ast.unparse(field.value) if field.value else ""
    if default.startswith("field(default_factory=lambda: "):
        default = default.removeprefix("field(default_factory=lambda: ").removesuffix(")")
    default = {"field(default_factory=list)": "[]", "field(default_factory=dict)": "{}"}.get(
        default, default
    )
    comment = lines[(field.end_lineno or field.lineno) - 1].partition("  # ")[2].strip()
    first = field.lineno - 1
    while not comment and lines[first - 1].strip().startswith("# "):
        first -= 1
    comment = comment or " ".join(
        line.strip().removeprefix("# ") for line in lines[first : field.lineno - 1]
    )
    return ("required" if default == "MISSING" else f"`{default}`", comment)


def _table(rows: list[tuple[str, str, str]]) -> str:
    body = [
        f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |"
        for key, default, meaning in rows
    ]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *body])


def main() -> int:
    """Write or check. Returns the exit code."""
    page = render() + "\n"
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == page:
            return 0
        print("docs/configuration.md is out of date: run `python scripts/config_docs.py`")
        return 1
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
