"""Traces by script: labels that the paragraphs themselves bear out, and bad files refused."""

import random
import re
from collections import Counter

import pytest

from pipeline.episode.evidence import judge_by_evidence
from pipeline.errors import UserError
from pipeline.judging.hotpot import hotpot_traces, read_hotpot
from pipeline.judging.scripted import KINDS, NamePool, scripted_trace
from tests.support.judged import hotpot_entry, other_entry, write_entries

PER_QUESTION = 60


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("hotpot") / "tiny.json"
    write_entries(path, hotpot_entry(), other_entry())
    return hotpot_traces(path, seed=1, per_question=PER_QUESTION)


def rounds_of(trace):
    kinds = trace.trajectory.question.metadata["kinds"]
    return list(zip(kinds, trace.trajectory.search_rounds, trace.labels, strict=True))


def said_before(trace, number):
    """The question and all that was read before round ``number`` (from 0)."""
    read = [p for r in trace.trajectory.search_rounds[:number] for p in r.passages]
    return " ".join([trace.trajectory.question.text, *(f"{p.title} {p.text}" for p in read)])


def test_every_kind_of_round_occurs_and_orders_vary(traces):
    kinds = Counter(kind for trace in traces for kind, _, _ in rounds_of(trace))
    assert set(kinds) == set(KINDS)
    assert len({tuple(t.trajectory.question.metadata["kinds"]) for t in traces}) > 20


def test_utility_is_1_exactly_where_a_supporting_paragraph_is_new(traces):
    for trace in traces:
        seen = set()
        for _, played, label in rounds_of(trace):
            new = {p.doc_id for p in played.passages} & {*trace.trajectory.question.evidence} - seen
            assert label.utility == float(bool(new)), trace.id
            assert len(new) <= 1
            seen |= new


def test_correctness_is_1_only_where_something_is_missing_and_every_name_was_said(traces):
    for trace in traces:
        missing = set(trace.trajectory.question.evidence)
        queries = set()
        for number, (kind, played, label) in enumerate(rounds_of(trace)):
            before = said_before(trace, number)
            names = re.findall(r"[A-Z]\w+ [A-Z]\w+|Brakwell|Dunholt|Westrel", played.reasoning)
            unsaid = [name for name in names if name not in before]
            right = bool(missing) and not unsaid and played.query not in queries
            assert label.correctness == float(right), (trace.id, kind)
            if label.utility:
                queries.add(played.query)
            missing -= {p.doc_id for p in played.passages}


def test_a_repetition_is_the_query_and_the_passages_of_a_round_that_had_succeeded(traces):
    repeated = 0
    for trace in traces:
        rounds = rounds_of(trace)
        for number, (kind, played, _) in enumerate(rounds):
            if kind == "repeated":
                repeated += 1
                assert any(
                    before.query == played.query
                    and before.passages == played.passages
                    and label.utility == 1
                    for _, before, label in rounds[:number]
                )
    assert repeated > 20


def test_a_guessed_name_stands_nowhere_in_the_question_or_its_paragraphs(traces):
    own = {"h1": hotpot_entry(), "h2": other_entry()}
    guessed = [
        (trace.trajectory.question.id, played.reasoning)
        for trace in traces
        for kind, played, _ in rounds_of(trace)
        if kind.startswith("guessed")
    ]
    assert len(guessed) > 20
    for question, reasoning in guessed:
        (name,) = re.findall(r"(?:that it is|must be|that this is) ([^.]+)\.", reasoning)
        assert name not in str(own[question])


def test_the_rule_over_the_same_evidence_says_the_same(traces):
    pairs = [
        ((label.utility, label.correctness), (said.utility, said.correctness))
        for trace in traces
        for label, said in zip(trace.labels, judge_by_evidence(trace.trajectory), strict=True)
    ]
    assert sum(label == said for label, said in pairs) / len(pairs) > 0.97


def test_a_paragraph_is_not_looked_for_by_a_title_that_nothing_names(tmp_path):
    hidden = hotpot_entry(
        question="Which river flows past the birthplace of the painter?",
        context=[
            ["Orla Venn", ["Orla Venn is a painter."]],
            ["Brakwell (town)", ["Brakwell lies on the Tamsel."]],
            ["Peter Venn", ["Peter Venn was a sailor."]],
        ],
    )
    made = hotpot_traces(write_entries(tmp_path / "a.json", hidden), per_question=30)
    for trace in made:
        found = [k for k, _, _ in rounds_of(trace) if k in ("found", "guessed")]
        assert len(found) == 1
        for number, (_, played, _) in enumerate(rounds_of(trace)):
            if "Orla Venn" not in said_before(trace, number):
                assert "Orla Venn" not in played.query
        assert "surplus" not in trace.trajectory.question.metadata["kinds"]


def test_passages_are_whole_paragraphs(tmp_path):
    (material,) = read_hotpot(write_entries(tmp_path / "a.json", hotpot_entry()))
    assert [p.title for p in material.supporting] == ["Orla Venn", "Brakwell (town)"]
    assert material.supporting[0].text == "Orla Venn is a painter. She was born in Brakwell."
    assert [p.title for p in material.distractors] == ["Peter Venn", "Lower Mirren", "Gorse Hill"]
    assert material.question.evidence == ("Orla Venn", "Brakwell (town)")


def test_a_question_without_distractors_has_searches_that_bring_nothing(tmp_path):
    bare = hotpot_entry(context=hotpot_entry()["context"][:2])
    made = hotpot_traces(write_entries(tmp_path / "a.json", bare), per_question=20)
    missed = [r for t in made for kind, r, _ in rounds_of(t) if kind == "missed"]
    assert missed
    assert all(p.title in ("Orla Venn", "Brakwell (town)") for r in missed for p in r.passages)


def test_the_same_seed_makes_the_same_traces_and_another_one_others(tmp_path):
    path = write_entries(tmp_path / "a.json", hotpot_entry(), other_entry())
    assert hotpot_traces(path, seed=1) == hotpot_traces(path, seed=1)
    assert hotpot_traces(path, seed=1) != hotpot_traces(path, seed=2)


def test_a_limit_is_of_questions(tmp_path):
    path = write_entries(tmp_path / "a.json", hotpot_entry(), other_entry())
    assert [t.id for t in hotpot_traces(path, limit=1, per_question=2)] == ["h1/0", "h1/1"]
    assert {t.labelled_by for t in hotpot_traces(path)} == {"supporting facts"}


def test_a_limit_changes_no_trace_of_the_questions_that_stay(tmp_path):
    path = write_entries(tmp_path / "a.json", hotpot_entry(), other_entry())
    every = hotpot_traces(path, per_question=PER_QUESTION)
    assert hotpot_traces(path, limit=1, per_question=PER_QUESTION) == every[:PER_QUESTION]


def test_a_guess_is_invented_where_no_other_question_lends_a_name(tmp_path):
    (material,) = read_hotpot(write_entries(tmp_path / "a.json", hotpot_entry()))
    names = NamePool([material])
    for seed in range(10):
        assert names.wrong(material, random.Random(seed)) not in material.text()
    assert scripted_trace(material, names, random.Random(0), number=3).id == "h1/3"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": " "}, "question must be a text"),
        ({"answer": 3}, "answer must be a text"),
        ({"supporting_facts": []}, "supporting_facts must be a list that is not empty"),
        ({"supporting_facts": [["Orla Venn"]]}, "pairs"),
        ({"supporting_facts": [["Nowhere", 0]]}, "'Nowhere' is not in its context"),
        ({"context": [["Orla Venn", "text"]]}, "pairs"),
        ({"context": [["Orla Venn", [1]], ["Brakwell (town)", ["x"]]]}, "must be texts"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_number(tmp_path, changes, problem):
    path = write_entries(tmp_path / "bad.json", other_entry(), hotpot_entry(**changes))
    with pytest.raises(UserError) as refused:
        read_hotpot(path)
    message = str(refused.value)
    assert f"{path}: entry 2" in message
    assert problem in message
    assert "Remedy" in message


def test_a_missing_key_and_an_id_used_twice_are_named(tmp_path):
    entry = hotpot_entry()
    del entry["context"]
    with pytest.raises(UserError, match=r"entry 1 .*'context' is missing"):
        read_hotpot(write_entries(tmp_path / "a.json", entry))
    with pytest.raises(UserError, match=r"entry 2 .*'h1' is that of entry 1"):
        read_hotpot(write_entries(tmp_path / "b.json", hotpot_entry(), hotpot_entry()))
    with pytest.raises(UserError, match=r"entry 1 .*no JSON object"):
        read_hotpot(write_entries(tmp_path / "c.json", "text"))


def test_a_directory_is_taken_for_the_questions_in_it(tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(UserError, match=r"questions\.json does not exist.*a directory with"):
        read_hotpot(tmp_path)
    path = write_entries(tmp_path / "questions.json", hotpot_entry(), other_entry())
    assert read_hotpot(tmp_path) == read_hotpot(path)


def test_files_that_are_no_question_set_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_hotpot(tmp_path / "nowhere.json")
    for content, problem in (("{", "not JSON"), ("[]", "list of questions"), ("{}", "list of")):
        path = tmp_path / "x.json"
        path.write_text(content)
        with pytest.raises(UserError, match=problem):
            read_hotpot(path)
