"""Question files of FlashRAG and Search-R1, good and bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.tasks.files import read_questions, write_questions
from pipeline.types import Question

GOOD = {"id": "q1", "question": "Who wrote Emma?", "golden_answers": ["Jane Austen", "Austen"]}


def _write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_flashrag_jsonl_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "nq.jsonl", GOOD, "", {**GOOD, "id": 7})
    first, second = read_questions(path)
    assert first.text == "Who wrote Emma?"
    assert first.answers == ("Jane Austen", "Austen")
    assert (first.source, first.evidence, first.hops) == ("nq", None, None)
    assert second.id == "7"


def test_gzipped_jsonl_is_read(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert [q.id for q in read_questions(path)] == ["q1"]


def test_evidence_is_passage_ids_and_titles_of_supporting_facts_are_none(tmp_path: Path) -> None:
    by_id = {**GOOD, "id": "a", "metadata": {"evidence": ["4", "9"], "hops": 2}}
    facts = {"title": ["Emma", "Jane Austen", "Emma"], "sent_id": [0, 1, 2]}
    by_title = {**GOOD, "id": "b", "metadata": {"supporting_facts": facts}}
    first, second = read_questions(_write(tmp_path / "x.jsonl", by_id, by_title))
    assert (first.evidence, first.hops) == (("4", "9"), 2)
    assert second.evidence is None


def test_written_questions_are_read_back_equal(tmp_path: Path) -> None:
    question = Question(
        id="train-000001",
        text='What is the capital of "Côte d\'Ivoire"?',
        answers=("Yamoussoukro",),
        source="copy",
        evidence=("12",),
        metadata={"evidence": ["12"], "hops": 1},
    )
    write_questions(tmp_path / "copy.jsonl", [question])
    assert read_questions(tmp_path / "copy.jsonl") == [question]
    assert [file.name for file in tmp_path.iterdir()] == ["copy.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.jsonl", GOOD)
    before = path.read_bytes()

    def questions() -> Any:
        yield from read_questions(path)
        raise RuntimeError("the generator failed")

    with pytest.raises(RuntimeError):
        write_questions(path, questions())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_search_r1_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    rows = [
        {
            "data_source": "nq",
            "prompt": [{"role": "user", "content": "Answer in tags. Question: who wrote emma?\n"}],
            "reward_model": {"style": "rule", "ground_truth": {"target": ["Jane Austen"]}},
            "extra_info": {"split": "train", "index": 5},
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (question,) = read_questions(tmp_path / "train.parquet")
    assert question.id == "train_5"
    assert question.text == "who wrote emma?"
    assert question.answers == ("Jane Austen",)
    assert question.source == "nq"


def test_flashrag_parquet_is_read_and_its_faults_name_the_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "nq.parquet")
    assert read_questions(tmp_path / "nq.parquet")[0].answers == ("Jane Austen", "Austen")
    twice = pyarrow.Table.from_pylist([GOOD, GOOD])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice\.parquet row 2: id 'q1' was already used .* row 1"):
        read_questions(tmp_path / "twice.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_questions(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "q2", ', "not valid JSON"),
        ('["q2"]', "expected an object, found a list"),
        ({"question": "Who?", "golden_answers": ["x"]}, "'id' is missing"),
        ({"id": "q2", "golden_answers": ["x"]}, "'question' is missing"),
        ({"id": "q2", "question": "Who?"}, "'golden_answers' is missing"),
        ({**GOOD, "id": "q2", "question": " "}, "the question is empty"),
        ({**GOOD, "id": "q2", "question": 3}, "'question' must be a string, found 3"),
        ({**GOOD, "id": "q2", "golden_answers": "x"}, "must be a list of strings, found a string"),
        ({**GOOD, "id": "q2", "golden_answers": [1]}, "must be a list of strings, found a list"),
        ({**GOOD, "id": "q2", "golden_answers": ["", " "]}, "golden_answers has no answer"),
        ({**GOOD, "id": "q2", "metadata": "x"}, "'metadata' must be an object"),
        ({**GOOD, "id": "q2", "metadata": {"evidence": "4"}}, "must be a list of passage ids"),
        (GOOD, "id 'q1' was already used"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(tmp_path: Path, bad: Any, message: str) -> None:
    path = _write(tmp_path / "bad.jsonl", GOOD, bad)
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)
    assert "Remedy: " in str(caught.value)


def test_a_missing_and_an_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.jsonl does not exist\. Remedy"):
        read_questions(tmp_path / "no.jsonl")
    with pytest.raises(UserError, match="holds no questions"):
        read_questions(_write(tmp_path / "empty.jsonl", ""))


@pytest.mark.parametrize(
    ("name", "count"), [("bamboogle", 125), ("nq", 1000), ("popqa", 1000), ("triviaqa", 1000)]
)
def test_the_real_flashrag_files_are_read(shared_data: Path, name: str, count: int) -> None:
    questions = read_questions(shared_data / "flashrag" / f"{name}.jsonl")
    assert len(questions) == count
    assert {question.source for question in questions} == {name}
    assert all(answer.strip() for question in questions for answer in question.answers)


def test_quotes_and_metadata_of_real_files_survive(shared_data: Path) -> None:
    trivia = {q.id: q for q in read_questions(shared_data / "flashrag" / "triviaqa.jsonl")}
    popqa = read_questions(shared_data / "flashrag" / "popqa.jsonl")
    assert trivia["test_6233"].text.startswith('"Who wrote ""A cauliflower')
    assert "Mark Twain" in trivia["test_6233"].answers
    assert all("s_wiki_title" in question.metadata for question in popqa)
