"""Tokenizer, initialisation, substitution, habit book, batches and retrieval table."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from pipeline.commands.warmstart import warmstart_config
from pipeline.errors import UserError
from pipeline.types import Passage, Question
from pipeline.warmstart.batches import bucketed, collate
from pipeline.warmstart.config import ModelConfig
from pipeline.warmstart.encode import EncodedEpisode
from pipeline.warmstart.habits import Habit, HabitBook
from pipeline.warmstart.induction import copy_accuracy, wire_induction_heads
from pipeline.warmstart.model import build_model
from pipeline.warmstart.plans import plan_questions
from pipeline.warmstart.retrieval import RetrievalTable, scripted_queries
from pipeline.warmstart.substitute import NameMaker, substitution
from pipeline.warmstart.tokenizer import TAGS, train_tokenizer
from pipeline.warmstart.train import losses
from tests.support.warmstart_world import World

WORLD = World()
TINY = ModelConfig(
    vocab_size=400, hidden_size=32, intermediate_size=32, num_layers=2, num_heads=2, head_dim=16
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORLD.texts(), vocab_size=400)


def test_each_tag_is_one_token_that_survives_decoding_without_special_tokens(tokenizer) -> None:
    text = "<think> The year 1945 is é. </think><search> a </search>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(tokenizer.encode(tag)) == 1 for tag in TAGS)


def test_digits_are_single_tokens(tokenizer) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("1945"))
    assert tokens == ["1", "9", "4", "5"]


def test_the_chat_template_ends_where_the_policy_writes(tokenizer) -> None:
    messages = [{"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Who?<|assistant|>"


def test_a_vocabulary_without_room_for_merges_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        train_tokenizer(["a"], vocab_size=256)


def test_the_wired_model_copies_before_training_and_a_plain_one_does_not(tokenizer) -> None:
    plain = build_model(ModelConfig(vocab_size=400), tokenizer, seed=0)
    wired = build_model(ModelConfig(vocab_size=400), tokenizer, seed=0)
    wire_induction_heads(wired, seed=0)
    assert copy_accuracy(plain) < 0.05
    assert copy_accuracy(wired) > 0.5


def test_the_same_seed_gives_the_same_weights(tokenizer) -> None:
    first, second = (build_model(TINY, tokenizer, seed=3) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_substitution_is_consistent_and_keeps_short_names() -> None:
    make_name = NameMaker(("Xanadu",), invented=0.0)
    retell = substitution(["Kenya", "EU", "+254"], make_name, random.Random(0))
    told = retell("Kenya: Kenyans in the EU dial +254, says Kenya.")
    assert told.startswith("Xanadu")
    assert told.count(told.split(":")[0]) == 2
    assert "Kenyans in the EU" in told
    assert "+254" not in told and "+" in told


def test_longer_names_are_replaced_first() -> None:
    retell = substitution(
        ["Guinea", "Papua New Guinea"], NameMaker(("Xanadu",), invented=0.0), random.Random(0)
    )
    assert "Guinea" not in retell("Papua New Guinea is not Guinea.")


def test_habits_are_dealt_by_share_and_bridge_relations_stay_clean() -> None:
    world = World(size=10)  # asked in the end: capital 1/5 (a bridge), river 2/5, mayor 2/5
    book = HabitBook.write(world.questions, shares={"premature": 0.4}, seed=0)
    befallen = [book.habit_of(q) for q in world.questions]
    assert befallen.count(Habit.PREMATURE) == 20 and befallen.count(None) == 30
    everyone = HabitBook.write(world.questions, shares={"guess": 1.0}, seed=0)
    assert everyone.cells == {"river": Habit.GUESS, "mayor": Habit.GUESS}


def test_relations_are_mixed_up_only_where_subjects_share_them() -> None:
    book = HabitBook.write(WORLD.questions, shares={}, seed=0)
    assert book.confused == {"capital": "river", "river": "capital"}
    land = WORLD.question(1).hops[0]
    confusion = book.confusion(land)
    assert confusion is not None and confusion == WORLD.hops["river", land.subject]
    assert book.confusion(WORLD.question(2).hops[0]) is None


def test_the_losses_count_their_tokens_only(tokenizer) -> None:
    model = build_model(TINY, tokenizer, seed=0)
    episodes = [
        EncodedEpisode([5, 6, 7, 8], [False, False, True, True], [True, True, False, False]),
        EncodedEpisode([9, 10], [False, True], [True, False]),
    ]
    batch = collate(episodes, pad_id=0)
    with torch.no_grad():
        written, read = losses(model, batch)
        alone = {"written": 0.0, "read": 0.0}
        for ids, learnt in (([5, 6, 7, 8], [2, 3]), ([9, 10], [1])):
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for t in range(1, len(ids)):
                alone["written" if t in learnt else "read"] -= logprobs[t - 1, ids[t]].item()
    assert written.item() == pytest.approx(alone["written"], rel=1e-5)
    assert read.item() == pytest.approx(alone["read"], rel=1e-5)
    assert batch.num_tokens == 6


def test_batches_keep_to_their_budget_and_leave_out_what_is_too_long() -> None:
    rng = random.Random(0)
    lengths = range(2, 60)
    episodes = [EncodedEpisode([1] * n, [False] + [True] * (n - 1), [False] * n) for n in lengths]
    batches = list(bucketed(iter(episodes), tokens_per_batch=100, max_length=50, pad_id=0, rng=rng))
    assert all(b.token_ids.numel() <= 100 for b in batches)
    assert sum(b.num_tokens for b in batches) == sum(range(2, 51))


def test_the_retriever_is_asked_once_for_every_scripted_query(tmp_path: Path) -> None:
    book = WORLD.book()
    queries = scripted_queries(WORLD.questions, book)
    asked: list[str] = []

    def search(missing, top_k):
        asked.extend(missing)
        return [tuple(p.doc_id for p in WORLD.search(q))[:top_k] for q in missing]

    for _ in range(2):
        table = RetrievalTable.fill(
            queries,
            WORLD.passages,
            search=lambda: search,
            top_k=3,
            cache=tmp_path,
            fingerprint="corpus",
        )
    assert asked == queries == list(dict.fromkeys(queries))
    hop = WORLD.question(1).hops[0]
    assert table(hop.query)[0] == WORLD.passages[hop.evidence]


def test_a_question_without_a_plan_is_named() -> None:
    question = Question(id="q7", text="Who?", answers=("me",))
    with pytest.raises(UserError, match=r"train\.jsonl.*'q7'.*metadata\.plan"):
        plan_questions([question], "train.jsonl")


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UserError, match="tokenz"):
        warmstart_config({"tokenz": 3})


def test_name_words_come_from_titles() -> None:
    maker = NameMaker.from_passages([Passage(doc_id="0", title="Lake Victoria (Africa)", text="")])
    assert maker.words == ("Lake", "Victoria", "Africa")


def test_some_names_are_spans_of_running_text() -> None:
    told = "Bird-of-paradise lives near Papua, 2018."
    maker = NameMaker.from_passages([Passage(doc_id="0", title="Bird", text=told)])
    (span,) = maker.spans
    assert span in told and not any(c.isdigit() or c in ",." for c in span)
    rng = random.Random(0)
    drawn = [maker(rng) for _ in range(200)]
    assert 30 < drawn.count(span) < 90
