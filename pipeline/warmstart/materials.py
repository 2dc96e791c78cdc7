"""What a warm start is made of: passages, planned questions, habits, retrieval, tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.atomic import sha256_of
from pipeline.config import GleanerConfig
from pipeline.errors import UserError
from pipeline.tasks.files import read_questions
from pipeline.types import Passage
from pipeline.warmstart.config import HabitConfig, WarmstartConfig
from pipeline.warmstart.habits import HabitBook
from pipeline.warmstart.plans import PlannedQuestion, plan_questions
from pipeline.warmstart.retrieval import BulkSearch, RetrievalTable, scripted_queries
from pipeline.warmstart.script import Mix, Scripter
from pipeline.warmstart.tokenizer import TAGS, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = [
    "read_passages",
    "read_plans",
    "read_tokenizer",
    "retrieval_table",
    "teach_tokenizer",
    "tokenizer_texts",
    "write_book",
]

_TOKENIZER_PASSAGES = 12_000
_TOKENIZER_EPISODES = 4_000


def read_passages(path: Path) -> dict[str, Passage]:
    """The corpus by id, in file order. Raises retrieval_index.errors.CorpusError."""
    from retrieval_index.corpus import read_corpus

    return {
        p.doc_id: Passage(doc_id=p.doc_id, title=p.title, text=p.text) for p in read_corpus(path)
    }


def read_plans(path: Path) -> list[PlannedQuestion]:
    """The planned questions of a file. Raises UserError where one has no plan."""
    return plan_questions(read_questions(path), str(path))


def write_book(questions: list[PlannedQuestion], settings: HabitConfig, *, seed: int) -> HabitBook:
    """Deal the habits of the configuration."""
    return HabitBook.write(questions, shares=settings.shares, seed=seed)


def retrieval_table(
    config: GleanerConfig,
    warmstart: WarmstartConfig,
    questions: list[PlannedQuestion],
    book: HabitBook,
    passages: Mapping[str, Passage],
) -> RetrievalTable:
    """The task's own index asked for every scripted query, through the cache on disk."""
    corpus = Path(config.task.corpus)
    return RetrievalTable.fill(
        scripted_queries(questions, book),
        passages,
        search=lambda: _bulk_search(config, corpus),
        top_k=config.protocol.top_k,
        cache=Path(warmstart.cache),
        fingerprint="|".join(
            map(
                str,
                (
                    sha256_of(corpus),
                    config.retriever.encoder,
                    config.retriever.factory,
                    *config.retriever.reading().values(),
                    *config.retriever.stages().values(),
                ),
            )
        ),
    )


def _bulk_search(config: GleanerConfig, corpus: Path) -> BulkSearch:
    from retrieval_index.index import DenseIndex

    index = DenseIndex.open(Path(config.task.index), corpus, **config.retriever.stages())
    return lambda queries, top_k: [
        tuple(hit.doc_id for hit in hits) for hits in index.search(queries, top_k)
    ]


def tokenizer_texts(
    questions: list[PlannedQuestion], table: RetrievalTable, scripter: Scripter, *, seed: int
) -> Iterator[str]:
    """Text that the tokenizer is trained on: passages, questions and scripted rounds.

    Each scripted round is cut at its tags, which are tokens of their own.
    """
    rng = random.Random(seed)
    passages = list(table.passages.values())
    for passage in rng.sample(passages, min(_TOKENIZER_PASSAGES, len(passages))):
        yield f"{passage.title}: {passage.text}"
    mix = Mix(habits=0.5, idle_guess=0.3, slip=0.2)
    for question in rng.sample(questions, min(_TOKENIZER_EPISODES, len(questions))):
        yield question.question.text
        episode = scripter.write(question, mix, rng)
        for scripted in episode.rounds if episode is not None else ():
            yield _without_tags(scripted.text)
            for passage in scripted.passages:
                yield f"{passage.title}: {passage.text}"


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, "\n")
    return text


def teach_tokenizer(
    questions: list[PlannedQuestion],
    table: RetrievalTable,
    scripter: Scripter,
    warmstart: WarmstartConfig,
) -> PreTrainedTokenizerFast:
    """The policy's tokenizer, trained on this task's text."""
    return train_tokenizer(
        tokenizer_texts(questions, table, scripter, seed=warmstart.seed),
        vocab_size=warmstart.model.vocab_size,
        model_max_length=warmstart.model.max_positions,
    )


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy to go on from. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"warmstart.start={directory} has no tokenizer: {error}") from error
