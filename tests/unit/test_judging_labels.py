"""Labels by people: blind on the way out, checked line by line on the way back."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from pipeline.commands.label import export_labels, import_labels, run, sample_traces
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.judging.labels import blank_rows, merge_labels, read_labels, round_digest
from pipeline.judging.traces import read_traces, write_traces
from pipeline.report.label_page import render_label_page
from tests.support.judged import trace

KINDS = ["secret kind one", "secret kind two"]


@pytest.fixture
def traces():
    """Two traces: of two rounds and of one, labelled."""
    return [
        trace("a", [(1, 0), (0, 1)], kinds=KINDS, text="</script><b>"),
        trace("b", [(1, 1)], number=3),
    ]


def row(identifier="a/0", number=1, utility=1, correctness=0, **more):
    return {
        "id": identifier,
        "round": number,
        "utility": utility,
        "correctness": correctness,
        **more,
    }


def write(path, *rows):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Scripts(HTMLParser):
    """The page's scripts, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._type = ""
        self.bold = 0

    def handle_starttag(self, tag, attrs):
        self._type = (dict(attrs).get("type") or "script") if tag == "script" else ""
        self.bold += tag == "b"

    def handle_data(self, data):
        if self._type:
            self.found[self._type] = self.found.get(self._type, "") + data

    def handle_endtag(self, tag):
        self._type = ""


def scripts_of(html):
    reader = Scripts()
    reader.feed(html)
    return reader


def test_rows_go_out_one_a_round_and_without_labels(traces):
    rows = list(blank_rows(traces))
    assert [(r["id"], r["round"]) for r in rows] == [("a/0", 1), ("a/0", 2), ("b/3", 1)]
    assert all(r["utility"] is None and r["correctness"] is None for r in rows)


def test_neither_page_nor_rows_say_anything_of_the_labels(traces, tmp_path):
    html = render_label_page(traces)
    export_labels(traces, tmp_path / "rounds.html")
    for text in (html, (tmp_path / "rounds.jsonl").read_text()):
        for secret in (
            "label's reason", "label\\u0027s", "secret kind", "golden", "an answer"
        ):  # fmt: skip
            assert secret not in text, secret
    # the same rounds under other labels make the same page
    other = [
        trace("a", [(0, 1), None], kinds=KINDS[::-1], text="</script><b>"),
        trace("b", [(0, 0)], number=3),
    ]
    assert render_label_page(other) == html


def test_the_page_holds_all_that_a_person_must_read_as_data(traces):
    reader = scripts_of(render_label_page(traces))
    data = json.loads(reader.found["application/json"])
    first = data["traces"][0]
    assert first["id"] == "a/0"
    assert first["question"] == "What about a? </script><b>"
    assert first["rounds"][1]["query"] == "query 2 </script><b>"
    assert first["rounds"][1]["passages"] == [
        {"title": "title 2 </script><b>", "text": "passage 2 </script><b>"}
    ]
    assert reader.bold == 1  # the brand's, and none of the traces'


def test_only_the_page_s_own_script_may_run_and_nothing_is_loaded(traces):
    html = render_label_page(traces)
    script = scripts_of(html).found["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert "innerHTML" not in script
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|import)\b", script)
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']""", html)


def test_what_was_entered_comes_back_in_place_of_the_labels(traces, tmp_path):
    digest = round_digest(traces[0], 2)
    path = write(
        tmp_path / "l.jsonl",
        row(number=2, utility=1, correctness=1, note="why", labelled_by="Ann", digest=digest),
        row("b/3", 1, utility=None, correctness=None, note="", labelled_by="Ann"),
    )
    human = read_labels(path, traces)
    assert (human.skipped, human.names) == (1, ("Ann",))
    (merged,) = merge_labels(traces, human)  # nobody labelled b/3
    assert merged.labels[0] is None  # the rule's label does not stay beside a person's
    assert (merged.labels[1].utility, merged.labels[1].correctness) == (1.0, 1.0)
    assert merged.labels[1].rationale == "why"
    assert merged.labelled_by == "human"
    assert merged.trajectory.question.metadata["labellers"] == ["Ann"]
    assert merged.trajectory.question.metadata["kinds"] == KINDS


def test_a_row_with_one_label_alone_is_skipped_and_counted(traces, tmp_path):
    path = write(tmp_path / "l.jsonl", row(correctness=None), row(number=2))
    human = read_labels(path, traces)
    assert (len(human.labels), human.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{no json", "Expecting"),
        ('"text"', "no JSON object"),
        (row("c/0"), "no trace 'c/0'"),
        (row(number=3), "round must be 1 to 2"),
        (row(number=0), "round must be 1 to 2"),
        (row(number=True), "round must be 1 to 2"),
        (row(utility=2), "utility must be 0, 1 or null"),
        (row(utility=True), "utility must be 0, 1 or null"),
        (row(correctness="1"), "correctness must be 0, 1 or null"),
        (row(colour="red"), "'colour' is unknown"),
        (row(note=3), "note must be a text"),
        (row(digest="0" * 16), "not the one that was exported"),
        ({"id": "a/0", "round": 1, "utility": 1}, "'correctness' is missing"),
        (row(number=2), "stands in line 1 already"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(traces, tmp_path, bad, problem):
    path = write(tmp_path / "l.jsonl", row(number=2), bad)
    with pytest.raises(UserError) as refused:
        read_labels(path, traces)
    assert f"{path}:2: " in str(refused.value)
    assert problem in str(refused.value)


def test_a_line_that_is_not_utf_8_is_named_by_file_and_number(traces, tmp_path):
    path = write(tmp_path / "l.jsonl", row())
    path.write_bytes(path.read_bytes() + b'{"note": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"l\.jsonl:2: not UTF-8"):
        read_labels(path, traces)


def test_an_import_writes_over_no_file(traces, tmp_path):
    labels = write(tmp_path / "l.jsonl", row())
    output = write(tmp_path / "out.jsonl", "what somebody labelled")
    with pytest.raises(UserError, match=r"out\.jsonl exists"):
        import_labels(traces, labels, output)
    assert "somebody" in output.read_text()


def test_an_import_does_not_write_over_its_source(traces, tmp_path):
    source = tmp_path / "traces.jsonl"
    write_traces(source, traces)
    config = GleanerConfig()
    config.label.traces = str(source)
    config.label.import_from = str(write(tmp_path / "l.jsonl", row()))
    config.label.output = str(tmp_path / "." / "traces.jsonl")
    before = source.read_text()
    with pytest.raises(UserError, match=r"is label\.traces itself"):
        run(config)
    assert source.read_text() == before


def test_a_round_that_changed_since_the_export_is_not_the_one_that_was_labelled(traces, tmp_path):
    path = write(tmp_path / "l.jsonl", *({**r, "utility": 1, "correctness": 1}
                                         for r in blank_rows(traces)))  # fmt: skip
    assert len(read_labels(path, traces).labels) == 3
    changed = [trace("a", [(1, 0), (0, 1)], text="other words"), traces[1]]
    with pytest.raises(UserError, match=r"l\.jsonl:1: .*not the one that was exported"):
        read_labels(path, changed)


def test_the_digest_of_a_round_is_of_what_came_before_and_not_of_what_comes_after(traces):
    shorter = trace("a", [(1, 0)], text="</script><b>")
    assert round_digest(shorter, 1) == round_digest(traces[0], 1) != round_digest(traces[0], 2)


def test_files_without_labels_are_refused(traces, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "nowhere.jsonl", traces)
    with pytest.raises(UserError, match="holds no labels"):
        read_labels(write(tmp_path / "empty.jsonl", ""), traces)
    path = write(tmp_path / "null.jsonl", row(utility=None))
    with pytest.raises(UserError, match="nothing to import"):
        import_labels(traces, path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_an_import_writes_a_file_of_traces_that_can_be_read(traces, tmp_path, capsys):
    path = write(tmp_path / "l.jsonl", row(), row("b/3", 1, utility=0, correctness=1))
    import_labels(traces, path, tmp_path / "out.jsonl")
    read = read_traces(tmp_path / "out.jsonl")
    assert [[label and label.utility for label in t.labels] for t in read] == [[1.0, None], [0.0]]
    assert {t.labelled_by for t in read} == {"human"}
    assert "2 rounds of 2 traces" in capsys.readouterr().out


def test_an_export_does_not_write_over_labels(traces, tmp_path):
    write(tmp_path / "rounds.jsonl", row())
    with pytest.raises(UserError, match="exists"):
        export_labels(traces, tmp_path / "rounds.html")
    with pytest.raises(UserError, match=r"must end in \.html"):
        export_labels(traces, tmp_path / "rounds.txt")


def test_a_sample_is_the_same_every_time_and_not_the_first_ones():
    many = [trace(f"q{i}", [(1, 1)]) for i in range(50)]
    ids = [t.id for t in sample_traces(many, 10)]
    assert ids == [t.id for t in sample_traces(many, 10)]
    assert ids != [t.id for t in many[:10]]
    assert ids == sorted(ids, key=[t.id for t in many].index)
    assert sample_traces(many, 0) == many
