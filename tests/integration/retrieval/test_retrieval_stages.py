"""Hybrid search, a reranker and shards, over the real encoder."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval_index import DenseIndex, Manifest, build_index, cli
from retrieval_index.build import SHARD_ROWS
from retrieval_index.corpus import PassageStore, scan_corpus
from retrieval_index.errors import EncoderError, IndexBuildError, IndexMismatchError, QueryError
from retrieval_index.hybrid import LexicalIndex, build_lexical
from retrieval_index.model_files import resolve_encoder
from retrieval_index.rerank import Reranker
from tests.integration.retrieval.facts import FACTS, MINILM, QUESTIONS, write_corpus


def titles(results: list[list[object]]) -> list[list[str]]:
    return [[hit.title for hit in hits] for hits in results]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def words(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    directory = tmp_path_factory.mktemp("words")
    np.save(directory / "offsets.npy", scan_corpus(corpus).offsets)
    with PassageStore(corpus, directory / "offsets.npy") as store:
        build_lexical(store, directory / "bm25")
    return LexicalIndex.open(directory / "bm25", 8, "")


@pytest.fixture(scope="module")
def hybrid(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("hybrid") / "index"
    build_index(corpus, index, MINILM, lexical=True, progress=False)
    return index


def test_passages_that_share_words_are_found_and_no_others(words: LexicalIndex) -> None:
    assert words.search(["liquid mercury", "of the", "Zanzibar", "capital"], 8) == [
        [3, 2],  # both words, one word
        [],  # stop words
        [],
        [0, 1],  # a tie: in the corpus's order
    ]


def test_the_best_by_words_are_as_many_as_wanted(words: LexicalIndex) -> None:
    assert words.search(["capital"], 1) == [[0]]


def test_an_index_of_words_of_another_corpus_is_refused(tmp_path: Path, hybrid: Path) -> None:
    with pytest.raises(IndexMismatchError, match="8 passages, the manifest says 9"):
        LexicalIndex.open(hybrid / "bm25", 9, "")
    with pytest.raises(IndexMismatchError, match="no BM25 index that can be read"):
        LexicalIndex.open(tmp_path, 8, "")


def test_hybrid_search_fuses_both_rankings(hybrid: Path, words: LexicalIndex) -> None:
    query = "the metal mercury"
    with DenseIndex.open(hybrid) as dense, DenseIndex.open(hybrid, hybrid=True) as both:
        by_vector = [hit.doc_id for hit in dense.search([query], 8)[0]]
        found = both.search([query], 3)[0]
    by_word = [f"p{row}" for row in words.search([query], 8)[0]]

    def score(doc_id: str) -> float:
        ranks = [r.index(doc_id) + 1 for r in (by_vector, by_word) if doc_id in r]
        return sum(1 / (60 + rank) for rank in ranks)

    assert found[0].title == "Mercury (element)"
    assert [hit.score for hit in found] == pytest.approx(
        sorted((score(doc_id) for doc_id in by_vector), reverse=True)[:3]
    )


def test_a_flat_index_has_no_search_parameters(index: Path) -> None:
    with pytest.raises(QueryError, match="a flat index has none"):
        DenseIndex.open(index, search_parameters="nprobe=4")


def test_hybrid_search_of_an_index_without_words_says_how_to_build_it(index: Path) -> None:
    with pytest.raises(IndexMismatchError, match="lexical=true"):
        DenseIndex.open(index, hybrid=True)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one with random weights: its order is arbitrary, and its own."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    path = tmp_path_factory.mktemp("cross-encoder")
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(MINILM))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_reranker_orders_what_was_found(index: Path, cross_encoder: Path) -> None:
    query = "hot beverage from leaves"
    with (
        DenseIndex.open(index) as dense,
        DenseIndex.open(index, reranker=str(cross_encoder), depth=4) as opened,
    ):
        first = dense.search([query], 4)[0]
        found = opened.search([query], 2)[0]
    scores = Reranker(str(cross_encoder)).scores([(query, hit.contents) for hit in first])

    order = sorted(range(4), key=lambda i: -scores[i])
    assert [hit.doc_id for hit in found] == [first[i].doc_id for i in order[:2]]
    assert [hit.score for hit in found] == pytest.approx([scores[i] for i in order[:2]], abs=1e-5)


def test_a_reranker_that_is_none_is_named(index: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"reranker .* cannot be loaded"):
        DenseIndex.open(index, reranker=str(tmp_path))


def test_an_encoder_is_no_reranker(index: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    for name in (MINILM, str(tmp_path)):
        with pytest.raises(EncoderError, match="no layer that scores a pair"):
            DenseIndex.open(index, reranker=name)


def test_shards_hold_what_one_index_holds(corpus: Path, index: Path, tmp_path: Path) -> None:
    manifest = build_index(corpus, tmp_path / "index", MINILM, shards=3, progress=False)

    assert [f.name for f in manifest.shard_files()] == [f"index-{n}.faiss" for n in range(3)]
    with DenseIndex.open(tmp_path / "index") as sharded, DenseIndex.open(index) as whole:
        assert titles(sharded.search(list(QUESTIONS), 8)) == titles(
            whole.search(list(QUESTIONS), 8)
        )
    with DenseIndex.open(tmp_path / "index", shards={1}) as part:
        assert {hit.doc_id for hit in part.search(["tea"], 8)[0]} == {"p2", "p3", "p4"}


def test_a_missing_shard_is_never_nothing_found(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", MINILM, shards=2, progress=False)
    (tmp_path / "index" / "index-1.faiss").unlink()

    with pytest.raises(IndexMismatchError, match="a file is missing or cut off"):
        DenseIndex.open(tmp_path / "index", corpus)


def test_shards_of_approximate_indexes_are_merged(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", MINILM, factory="HNSW8", shards=2, progress=False)

    with DenseIndex.open(tmp_path / "index", search_parameters="efSearch=32") as opened:
        assert titles(opened.search(["river in Egypt"], 1)) == [["Nile"]]
        assert len(opened.search(["river in Egypt"], 8)[0]) == 8


def test_rows_of_embeddings_and_of_index_files_need_not_end_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_index.build.SHARD_ROWS", 3)
    assert SHARD_ROWS == 1024
    corpus = write_corpus(tmp_path / "c.jsonl", FACTS)
    build_index(corpus, tmp_path / "many", MINILM, shards=3, progress=False)
    build_index(corpus, tmp_path / "one", MINILM, progress=False)

    with DenseIndex.open(tmp_path / "many") as many, DenseIndex.open(tmp_path / "one") as one:
        assert many.search(list(QUESTIONS), 8) == one.search(list(QUESTIONS), 8)


def test_more_shards_than_passages_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexBuildError, match="shards=9: the corpus has 8 passages"):
        build_index(corpus, tmp_path / "index", MINILM, shards=9, progress=False)


def test_an_index_without_words_is_not_up_to_date_for_hybrid_search(
    index: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(index, tmp_path / "index")
    shutil.copy2(corpus, tmp_path / "corpus.jsonl")
    manifest = build_index(tmp_path / "corpus.jsonl", tmp_path / "index", MINILM, lexical=True)
    assert manifest.lexical
    shutil.rmtree(tmp_path / "index" / "bm25")

    build_index(tmp_path / "corpus.jsonl", tmp_path / "index", MINILM, lexical=True)
    with DenseIndex.open(tmp_path / "index", hybrid=True) as opened:
        assert titles(opened.search(["river in Egypt"], 1)) == [["Nile"]]


def test_every_rebuild_command_is_one_that_build_takes(corpus: Path, index: Path) -> None:
    manifest = replace(Manifest.read(index), shards=4, lexical=True, factory="HNSW8")
    words = shlex.split(manifest.rebuild_command(index, corpus))
    assert words[:4] == ["python", "-m", "retrieval_index", "build"]
    _, keys = cli._parsed("build", cli.build, words[4:])
    assert (keys["shards"], keys["lexical"], keys["factory"]) == (4, True, "HNSW8")


def test_search_parameters_that_faiss_does_not_know_are_refused(
    corpus: Path, tmp_path: Path
) -> None:
    build_index(corpus, tmp_path / "index", MINILM, factory="HNSW8", progress=False)
    with pytest.raises(QueryError, match=r"nprobe=4: FAISS refuses them for this index \(Param"):
        DenseIndex.open(tmp_path / "index", search_parameters="nprobe=4")


def test_auto_is_exact_for_few_passages(corpus: Path, tmp_path: Path) -> None:
    manifest = build_index(corpus, tmp_path / "index", MINILM, factory="auto", progress=False)
    assert manifest.factory == "Flat"
