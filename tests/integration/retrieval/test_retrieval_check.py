"""Checking an index, measuring its recall, taking one over that was made elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index import DenseIndex, build_index
from retrieval_index.check import check_index
from retrieval_index.cli import main
from retrieval_index.corpus import read_corpus
from retrieval_index.encoder import Encoder
from retrieval_index.errors import IndexBuildError, IndexMismatchError
from retrieval_index.manifest import Manifest
from retrieval_index.take_over import import_index
from retrieval_index.vectors import stored_vectors
from tests.integration.retrieval.facts import FACTS, MINILM, write_corpus

HNSW = "HNSW8"


@pytest.fixture(scope="module")
def approximate(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("approximate") / "hnsw"
    build_index(corpus, index, MINILM, factory=HNSW, progress=False)
    return index


@pytest.fixture
def copy(corpus: Path, index: Path, tmp_path: Path) -> Path:
    """An index of its own to damage."""
    shutil.copy2(corpus, tmp_path / "corpus.jsonl")
    shutil.copytree(index, tmp_path / "index")
    return tmp_path / "index"


def test_a_whole_index_has_no_problems(index: Path) -> None:
    found = check_index(index)

    assert found.problems == []
    assert "duplicates: none" in found.notes
    assert any(note.startswith("sample: 8 passages embedded again") for note in found.notes)


def test_passages_of_the_same_text_are_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", FACTS)
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join([*lines, lines[2].replace('"p2"', '"p9"')]) + "\n")
    build_index(corpus, tmp_path / "index", MINILM, progress=False)

    notes = check_index(tmp_path / "index").notes
    assert "duplicates: 1 passages have the text of another (lines 3 and 9)" in notes


def test_a_vector_that_is_not_its_passages_is_found(copy: Path) -> None:
    index = faiss.read_index(str(copy / "index.faiss"))
    vectors = index.reconstruct_n(0, 8)
    swapped = faiss.IndexFlatIP(384)
    swapped.add(vectors[[1, 0, *range(2, 8)]])
    faiss.write_index(swapped, str(copy / "index.faiss"))

    problems = check_index(copy).problems
    assert problems == [
        "sample: 2 of 8 stored vectors are not their passages' (row 0 first): index, corpus and "
        "encoder do not belong together; build it again with force=true"
    ]


def test_a_vector_that_is_no_number_is_found(copy: Path) -> None:
    broken = faiss.IndexFlatIP(384)
    vectors = np.array(stored_vectors(Manifest.read(copy), copy)[0][1])
    vectors[5, 7] = np.nan
    broken.add(vectors)
    faiss.write_index(broken, str(copy / "index.faiss"))

    problems = check_index(copy).problems
    assert any("row 5 has length nan" in problem for problem in problems)


def test_a_changed_corpus_is_found_line_by_line(copy: Path) -> None:
    corpus = copy.parent / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("Germany", "Prussia"))

    problems = check_index(copy).problems
    assert any("not that of the manifest" in problem for problem in problems)
    assert "text_hashes.npy: 1 rows are not the corpus's (line 2)" in problems


def test_the_command_ends_with_2_where_something_is_wrong(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "index.faiss").write_bytes(b"IxFI")

    assert main(["check", f"index={copy}"]) == 2
    assert "a file is missing or cut off" in capsys.readouterr().err


def test_recall_of_an_approximate_index_is_told_and_drawn(
    approximate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "recall.png"
    assert main(["check", f"index={approximate}", "top_k=3", f"picture={picture}"]) == 0

    said = capsys.readouterr().out
    assert "recall at 3, efSearch=64: 1.000" in said
    assert "recall at 3, exact: 1.000" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_vectors_are_kept_beside_an_approximate_index(
    approximate: Path, index: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(_, kept)] = stored_vectors(Manifest.read(approximate), approximate)
    [(_, flat)] = stored_vectors(Manifest.read(index), index)
    assert np.array_equal(kept, flat)

    shutil.copytree(approximate, tmp_path / "again")
    shutil.copy2(corpus, tmp_path / "corpus.jsonl")
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("encoded again"))
    manifest = build_index(tmp_path / "corpus.jsonl", tmp_path / "again", MINILM, progress=False)
    assert (manifest.factory, manifest.vectors_bytes) == ("Flat", 0)


def test_damaged_vectors_of_an_approximate_index_are_a_problem(
    approximate: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(approximate, tmp_path / "index")
    file = tmp_path / "index" / "vectors.faiss"
    file.write_bytes(file.read_bytes()[:1000])

    problems = check_index(tmp_path / "index", corpus).problems
    assert len(problems) == 1
    assert problems[0].startswith("vectors: 1,000 bytes")


def test_without_them_recall_is_unknown(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = build_index(
        corpus, tmp_path / "i", MINILM, factory=HNSW, progress=False, keep_vectors=False
    )
    assert manifest.vectors_bytes == 0
    assert stored_vectors(manifest, tmp_path / "i") == []
    assert main(["check", f"index={tmp_path / 'i'}"]) == 0
    said = capsys.readouterr().out
    assert "recall: not measured, for the index is imported, or built with keep_vectors" in said


@pytest.mark.parametrize("factory", ["Flat", HNSW])
def test_an_index_file_from_elsewhere_is_taken_over(
    factory: str, corpus: Path, tmp_path: Path
) -> None:
    vectors = Encoder(MINILM).encode([p.contents for p in read_corpus(corpus)])
    made = faiss.index_factory(384, factory, faiss.METRIC_INNER_PRODUCT)
    made.add(vectors)
    faiss.write_index(made, str(tmp_path / "e5.index"))

    manifest = import_index(tmp_path / "e5.index", corpus, tmp_path / "index", MINILM)
    assert (manifest.imported, manifest.count) == (True, 8)
    assert (tmp_path / "index" / "index.faiss").is_symlink()
    with DenseIndex.open(tmp_path / "index") as opened:
        assert opened.search(["liquid metal"], 1)[0][0].title == "Mercury (element)"


@pytest.mark.parametrize("factory", ["Flat", HNSW])
def test_rows_in_another_order_are_refused(factory: str, corpus: Path, tmp_path: Path) -> None:
    vectors = Encoder(MINILM).encode([p.contents for p in read_corpus(corpus)])
    made = faiss.index_factory(384, factory, faiss.METRIC_INNER_PRODUCT)
    made.add(vectors[::-1].copy())
    faiss.write_index(made, str(tmp_path / "e5.index"))

    with pytest.raises(IndexMismatchError, match="of 8 sampled passages do not have the vector"):
        import_index(tmp_path / "e5.index", corpus, tmp_path / "index", MINILM)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e5.index"]


def test_another_number_of_passages_is_refused(corpus: Path, tmp_path: Path) -> None:
    made = faiss.IndexFlatIP(384)
    made.add(np.ones((7, 384), dtype=np.float32))
    faiss.write_index(made, str(tmp_path / "e5.index"))

    with pytest.raises(IndexMismatchError, match="7 vectors for the 8 passages"):
        import_index(tmp_path / "e5.index", corpus, tmp_path / "index", MINILM)


def test_another_dimension_is_refused(corpus: Path, tmp_path: Path) -> None:
    made = faiss.IndexFlatIP(768)
    made.add(np.ones((8, 768), dtype=np.float32))
    faiss.write_index(made, str(tmp_path / "e5.index"))

    with pytest.raises(IndexMismatchError, match=r"768 dimensions, encoder .* makes 384"):
        import_index(tmp_path / "e5.index", corpus, tmp_path / "index", MINILM)


def test_euclidean_distances_and_other_files_are_refused(corpus: Path, tmp_path: Path) -> None:
    made = faiss.IndexHNSWFlat(384, 8)
    made.add(np.ones((8, 384), dtype=np.float32))
    faiss.write_index(made, str(tmp_path / "l2.index"))
    with pytest.raises(IndexMismatchError, match="an index of Euclidean distances"):
        import_index(tmp_path / "l2.index", corpus, tmp_path / "index", MINILM)

    (tmp_path / "text.index").write_text("not an index")
    with pytest.raises(IndexMismatchError, match="FAISS cannot read it"):
        import_index(tmp_path / "text.index", corpus, tmp_path / "index", MINILM)
    with pytest.raises(IndexMismatchError, match="no such file"):
        import_index(tmp_path / "none.index", corpus, tmp_path / "index", MINILM)


@pytest.mark.parametrize("inside", ["index file", "corpus"])
def test_what_the_new_index_would_replace_is_not_taken_over(inside: str, copy: Path) -> None:
    corpus = copy.parent / "corpus.jsonl"
    file = shutil.copy2(copy / "index.faiss", copy.parent / "e5.index")
    if inside == "corpus":
        corpus = Path(shutil.copy2(corpus, copy / "corpus.jsonl"))
    else:
        file = copy / "index.faiss"
    before = sorted(copy.iterdir())

    with pytest.raises(IndexBuildError, match="which a new index replaces"):
        import_index(Path(file), corpus, copy, MINILM)
    assert sorted(copy.iterdir()) == before


def test_vectors_of_another_length_are_refused(corpus: Path, tmp_path: Path) -> None:
    made = faiss.IndexFlatIP(384)
    made.add(2 * Encoder(MINILM).encode([p.contents for p in read_corpus(corpus)]))
    faiss.write_index(made, str(tmp_path / "e5.index"))

    with pytest.raises(IndexMismatchError, match="not of length 1"):
        import_index(tmp_path / "e5.index", corpus, tmp_path / "index", MINILM)


def test_a_directory_with_other_files_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IndexBuildError, match="holds files that are not an index"):
        import_index(tmp_path / "e5.index", corpus, tmp_path, MINILM)


def test_a_parquet_corpus_gives_the_same_index(corpus: Path, index: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    build_index(tmp_path / "corpus.parquet", tmp_path / "index", MINILM, progress=False)

    with DenseIndex.open(tmp_path / "index") as here, DenseIndex.open(index) as there:
        assert here.search(["river in Egypt"], 3) == there.search(["river in Egypt"], 3)
    assert check_index(tmp_path / "index").problems == []


def test_the_command_line_takes_over_checks_and_recommends(
    corpus: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy2(index / "index.faiss", tmp_path / "e5.index")
    given = [f"index_file={tmp_path / 'e5.index'}", f"corpus={corpus}", f"encoder={MINILM}"]
    assert main(["import", *given, f"index={tmp_path / 'index'}"]) == 0
    assert main(["check", f"index={tmp_path / 'index'}"]) == 0
    said = capsys.readouterr().out
    assert "8 passages x 384, Flat, ready" in said
    assert said.endswith("all is well\n")

    wiki = [f"corpus={corpus}", f"encoder={MINILM}", "memory_gib=16"]
    assert main(["recommend", *wiki]) == 0
    assert "factory=Flat: 0.00 GiB; exact, and small enough for it" in capsys.readouterr().out

    assert main(["build", f"index={index}", *given[1:], "keep_vectors=maybe"]) == 2
    assert "keep_vectors=maybe: must be true or false" in capsys.readouterr().err
