"""Search with vectors written by hand: order, ties, limits, caches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_index.cache import LruCache
from retrieval_index.corpus import PassageStore, scan_corpus
from retrieval_index.errors import QueryError
from retrieval_index.exact import ExactSearch
from retrieval_index.index import MAX_QUERY_CHARACTERS, DenseIndex
from retrieval_index.manifest import FORMAT, Manifest

# Unit vectors in the plane. Rows 1, 2 and 4 are the same vector.
VECTORS = [[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]
CONTENTS = [
    '"T0"\nText 0', "T1\nText 1, without quotes", "Only a line", '  "T3" \r\nText 3', '"T4"\n', '"'
]  # fmt: skip


class Compass:
    """Encodes four words as directions, behind the query prefix ``q: ``."""

    fingerprint = "compass"
    dimension = 2

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        directions = {"q: east": [1, 0], "q: north": [0, 1], "q: west": [-1, 0]}
        return np.array([directions[text] for text in texts], dtype=np.float32)


class Words:
    """Ranks by words as it is told."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[int]]:
        rankings = {"east": [3, 4, 2, 1], "north": [0, 5]}
        return [rankings[query][:top_k] for query in queries]


class Longest:
    """A reranker to which the longest passage is the best, contents as in the corpus."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        assert all(contents in CONTENTS for _, contents in pairs)
        return [float(len(contents)) for _, contents in pairs]


def open_index(folder: Path, **options: Any) -> DenseIndex:
    corpus = folder / "c.jsonl"
    rows = ({"id": f"d{n}", "contents": contents} for n, contents in enumerate(CONTENTS))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(folder / "offsets.npy", scan_corpus(corpus).offsets)
    manifest = Manifest(
        format=FORMAT,
        encoder="compass",
        encoder_fingerprint="compass",
        dimension=2,
        metric="inner_product",
        query_prefix="q: ",
        passage_prefix="",
        factory="Flat",
        count=len(VECTORS),
        corpus="c.jsonl",
        corpus_sha256="",
        corpus_bytes=0,
        index_bytes=0,
        versions={},
        created="",
    )
    store = PassageStore(corpus, folder / "offsets.npy")
    vectors = ExactSearch(np.array(VECTORS, dtype=np.float32))
    return DenseIndex(manifest, vectors, store, Compass(), cache_size=2, **options)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[DenseIndex]:
    with open_index(tmp_path) as opened:
        yield opened


def ids(results: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[hit.doc_id for hit in hits] for hits in results]


def test_hits_are_ordered_by_cosine_with_ties_in_corpus_order(index: DenseIndex) -> None:
    hits = index.search(["east"], 6)[0]

    assert [hit.doc_id for hit in hits] == ["d0", "d1", "d2", "d4", "d3", "d5"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.6, 0.6, 0.6, 0.0, -1.0])
    assert (hits[0].title, hits[0].text) == ("T0", "Text 0")


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_a_tie_across_the_limit_keeps_the_earlier_rows(index: DenseIndex, top_k: int) -> None:
    assert ids(index.search(["north"], top_k)) == [["d3", "d1", "d2", "d4"][:top_k]]


def test_every_query_of_a_batch_gets_what_it_gets_alone(index: DenseIndex) -> None:
    together = index.search(["west", "east", "north"], 3)

    assert together == [index.search([query], 3)[0] for query in ("west", "east", "north")]


def test_identical_queries_of_a_batch_are_encoded_once(index: DenseIndex) -> None:
    results = index.search(["east", "north", "east", "east"], 1)

    assert ids(results) == [["d0"], ["d3"], ["d0"], ["d0"]]
    assert index._encoder.seen == ["q: east", "q: north"]
    assert index.stats.as_dict() | {"busy_s": 0.0} == {
        "queries": 4.0,
        "cache_hits": 0.0,
        "duplicates": 2.0,
        "embedding_hits": 0.0,
        "encoded": 2.0,
        "busy_s": 0.0,
    }


def test_a_repeated_query_comes_from_the_cache_until_it_is_the_oldest(index: DenseIndex) -> None:
    index.search(["east"], 1)
    index.search(["east"], 1)
    assert (index.stats.cache_hits, index.stats.encoded) == (1, 1)

    index.search(["north", "west"], 1)  # the cache holds two
    index.search(["east"], 1)
    assert (index.stats.cache_hits, index.stats.encoded) == (1, 4)


def test_another_top_k_is_searched_for_and_not_encoded_again(index: DenseIndex) -> None:
    assert ids(index.search(["east"], 1)) == [["d0"]]
    assert ids(index.search(["east"], 2)) == [["d0", "d1"]]
    assert (index.stats.cache_hits, index.stats.embedding_hits, index.stats.encoded) == (0, 1, 1)


def test_forbidden_passages_are_not_found_and_others_take_their_places(index: DenseIndex) -> None:
    found = index.search(["east", "east", "north"], 2, [{"d0", "d2"}, (), {"unknown"}])

    assert ids(found) == [["d1", "d4"], ["d0", "d1"], ["d3", "d1"]]


def test_what_is_forbidden_for_one_query_changes_nothing_for_its_neighbours(
    tmp_path: Path,
) -> None:
    with open_index(tmp_path, lexical=Words(), depth=2) as opened:
        alone = opened.search(["east"], 1)
        beside = opened.search(["east", "north"], 1, [(), {"d1", "d2", "d3", "d4"}])

    # 1/61 for d0 by vector and for d3 by words; four places deeper d3 would have both rankings
    assert ids(alone) == [["d0"]]
    assert ids(beside) == [["d0"], ["d0"]]
    assert opened._encoder.seen == ["q: east", "q: north"]


def test_hits_hold_the_contents_as_they_are_in_the_corpus(tmp_path: Path) -> None:
    with open_index(tmp_path, reranker=Longest()) as opened:
        hits = opened.search(["east"], 6)[0]

    assert {hit.doc_id: hit.contents for hit in hits} == {
        f"d{n}": contents for n, contents in enumerate(CONTENTS)
    }
    assert [hit.doc_id for hit in hits] == ["d1", "d3", "d0", "d2", "d4", "d5"]
    assert [hit.score for hit in hits] == [25.0, 15.0, 11.0, 11.0, 5.0, 1.0]


def test_where_all_is_forbidden_nothing_is_found(index: DenseIndex) -> None:
    assert index.search(["east"], 3, [{f"d{n}" for n in range(6)}]) == [[]]


def test_forbidden_ids_are_given_for_each_query(index: DenseIndex) -> None:
    with pytest.raises(QueryError, match="1 sets of forbidden ids for 2 queries"):
        index.search(["east", "north"], 1, [{"d0"}])


def test_a_query_far_beyond_what_an_encoder_reads_is_refused(index: DenseIndex) -> None:
    with pytest.raises(QueryError, match="query 0 has 100,000 characters; up to 20,000"):
        index.search(["e" * 100_000], 1)
    assert MAX_QUERY_CHARACTERS == 20_000


def test_changing_a_result_does_not_change_the_cache(index: DenseIndex) -> None:
    index.search(["east"], 1)[0].clear()

    assert ids(index.search(["east"], 1)) == [["d0"]]


@pytest.mark.parametrize("top_k", [0, -1, 7])
def test_top_k_outside_the_corpus_is_refused(index: DenseIndex, top_k: int) -> None:
    with pytest.raises(QueryError, match=f"top_k={top_k}: must be between 1 and the 6 passages"):
        index.search(["east"], top_k)


@pytest.mark.parametrize("queries", [["east", ""], ["east", " \n"]])
def test_a_blank_query_is_refused_by_its_number(index: DenseIndex, queries: list[str]) -> None:
    with pytest.raises(QueryError, match="query 1 is blank"):
        index.search(queries, 1)


def test_half_of_a_surrogate_pair_is_refused_by_its_number(index: DenseIndex) -> None:
    with pytest.raises(QueryError, match=r"query 1 is not valid Unicode \(character 4"):
        index.search(["east", "east\ud83d"], 1)


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        ([[1.0, 0.0], [np.nan, 0.0]], "query vector 1 is not finite"),
        ([[np.inf, 0.0]], "query vector 0 is not finite"),
        ([[1.0, 0.0, 0.0]], r"query vectors of shape \(1, 3\): must be \(n, 2\)"),
        ([1.0, 0.0], r"query vectors of shape \(2,\): must be \(n, 2\)"),
    ],
)
def test_vectors_that_cannot_be_searched_for_are_refused(
    index: DenseIndex, vectors: list[Any], complaint: str
) -> None:
    for search in (index.search_rows, index.search_vectors):
        with pytest.raises(QueryError, match=complaint):
            search(np.array(vectors, dtype=np.float32), 1)


def test_one_string_in_place_of_a_list_is_refused(index: DenseIndex) -> None:
    with pytest.raises(QueryError, match="must be a list"):
        index.search("east", 1)


def test_no_queries_give_no_results(index: DenseIndex) -> None:
    assert index.search([], 3) == []
    assert index.embed([]).shape == (0, 2)


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    cache.put("c", 3)

    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_a_cache_of_no_capacity_keeps_nothing() -> None:
    cache: LruCache[str, int] = LruCache(0)
    cache.put("a", 1)

    assert cache.get("a") is None
