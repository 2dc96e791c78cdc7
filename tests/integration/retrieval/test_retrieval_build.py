"""Build and search with the real MiniLM encoder on small corpora."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import psutil
import pytest

import retrieval_index.build as build_module
from retrieval_index import DenseIndex, assemble, build_index
from retrieval_index.corpus import read_corpus
from retrieval_index.encoder import Encoder
from retrieval_index.errors import CorpusError, EncoderError, IndexBuildError, IndexMismatchError
from retrieval_index.index_directory import new_index_directory
from retrieval_index.model_files import resolve_encoder
from tests.integration.retrieval.facts import FACTS, MINILM, QUESTIONS, write_corpus


def vectors_of(index: Path) -> np.ndarray:
    flat = faiss.read_index(str(index / "index.faiss"))
    return flat.reconstruct_n(0, flat.ntotal)


def titles(results: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[hit.title for hit in hits] for hits in results]


def test_each_question_finds_its_passage_first(corpus: Path, index: Path) -> None:
    with DenseIndex.open(index, corpus) as opened:
        results = opened.search(list(QUESTIONS), 3)

    assert [found[0] for found in titles(results)] == list(QUESTIONS.values())


def test_scores_are_cosines_of_the_models_own_vectors(corpus: Path, index: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve_encoder(MINILM)), device="cpu")
    passages = model.encode([p.contents for p in read_corpus(corpus)], convert_to_numpy=True)
    question = "What is the capital of Germany?"
    vector = model.encode([question], convert_to_numpy=True)[0]
    lengths = np.linalg.norm(passages, axis=1) * np.linalg.norm(vector)
    expected = passages @ vector / lengths
    with DenseIndex.open(index, corpus) as opened:
        hits = opened.search([question], len(FACTS))[0]

    assert [hit.doc_id for hit in hits] == [f"p{n}" for n in np.argsort(-expected)]
    assert [hit.score for hit in hits] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)


def test_row_n_of_the_index_is_line_n_of_the_corpus_although_batches_are_by_length(
    corpus: Path, index: Path
) -> None:
    alone = np.concatenate([Encoder(MINILM).encode([p.contents]) for p in read_corpus(corpus)])

    assert np.abs(vectors_of(index) - alone).max() < 1e-5


def test_the_manifest_says_what_the_index_was_made_from(corpus: Path, index: Path) -> None:
    manifest = json.loads((index / "manifest.json").read_text())

    assert manifest["encoder"] == MINILM
    assert (manifest["count"], manifest["dimension"]) == (8, 384)
    assert (manifest["factory"], manifest["metric"]) == ("Flat", "inner_product")
    assert manifest["corpus"] == "../corpus.jsonl"
    assert manifest["corpus_bytes"] == corpus.stat().st_size
    assert sorted(p.name for p in index.parent.iterdir()) == ["corpus.jsonl", "index"]


def test_the_corpus_is_found_through_the_manifest(index: Path) -> None:
    with DenseIndex.open(index) as opened:
        assert titles(opened.search(["river in Egypt"], 1)) == [["Nile"]]


def test_an_index_that_is_up_to_date_is_left_alone(corpus: Path, index: Path) -> None:
    before = (index / "manifest.json").stat().st_mtime_ns

    build_index(corpus, index, MINILM, progress=False)

    assert (index / "manifest.json").stat().st_mtime_ns == before


def test_a_gzipped_corpus_gives_the_same_index(corpus: Path, index: Path, tmp_path: Path) -> None:
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    build_index(packed, tmp_path / "index", MINILM, progress=False)

    assert np.array_equal(vectors_of(tmp_path / "index"), vectors_of(index))
    with DenseIndex.open(tmp_path / "index", packed) as opened:
        assert titles(opened.search(["liquid metal"], 1)) == [["Mercury (element)"]]


def test_prefixes_are_part_of_what_is_embedded(corpus: Path, tmp_path: Path) -> None:
    prefixes = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    build_index(corpus, tmp_path / "index", MINILM, progress=False, **prefixes)
    first = next(read_corpus(corpus)).contents

    expected = Encoder(MINILM).encode([f"passage: {first}"])[0]
    assert np.abs(vectors_of(tmp_path / "index")[0] - expected).max() < 1e-5
    with DenseIndex.open(tmp_path / "index", corpus, **prefixes) as opened:
        score = opened.search(["capital"], 8)[0][0].score
    query = Encoder(MINILM).encode(["query: capital"])[0]
    assert score == pytest.approx(float((vectors_of(tmp_path / "index") @ query).max()), abs=1e-5)


def test_pooling_and_length_can_be_set_and_are_in_the_manifest(
    corpus: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    bare = tmp_path / "bare"  # a Hugging Face model, of which nothing says the pooling
    shutil.copytree(resolve_encoder(MINILM), bare, ignore=lambda *_: ["modules.json"])
    settings = {"pooling": "cls", "max_length": 8}
    built = build_index(corpus, tmp_path / "index", str(bare), progress=False, **settings)

    assert (built.pooling, built.max_length, built.revision) == ("cls", 8, "")
    first = next(read_corpus(corpus)).contents
    tokens = AutoTokenizer.from_pretrained(bare)(
        first, return_tensors="pt", truncation=True, max_length=8
    )
    with torch.no_grad():
        expected = AutoModel.from_pretrained(bare)(**tokens).last_hidden_state[0, 0].numpy()
    expected /= np.linalg.norm(expected)
    assert np.abs(vectors_of(tmp_path / "index")[0] - expected).max() < 1e-5
    with DenseIndex.open(tmp_path / "index", **settings) as opened:
        assert opened.search([first], 1)[0][0].score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(IndexMismatchError, match="built with pooling='cls', not 'mean'"):
        DenseIndex.open(tmp_path / "index", pooling="")
    with pytest.raises(EncoderError, match="pooling=max: must be mean or cls"):
        build_index(corpus, tmp_path / "other", str(bare), pooling="max", progress=False)


def test_worker_processes_give_the_vectors_of_one_process(
    corpus: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "SHARD_ROWS", 3)
    build_index(corpus, tmp_path / "index", MINILM, workers=2, progress=False)

    assert np.abs(vectors_of(tmp_path / "index") - vectors_of(index)).max() < 1e-5
    assert multiprocessing.active_children() == []


class Interrupted(Exception):
    """Stands for a kill between two shards."""


def count_encoded(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """Record the texts that are really encoded; stop the build after so many calls."""
    encoded: list[str] = []
    calls = [0]
    real = Encoder.encode

    def encode(self: Encoder, texts: Sequence[str], *rest: object) -> np.ndarray:
        if calls[0] == stop_after:
            raise Interrupted
        calls[0] += 1
        encoded.extend(texts)
        return real(self, texts, *rest)

    monkeypatch.setattr(Encoder, "encode", encode)
    return encoded


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat", "IVF2,PQ4x2", "HNSW8"])
def test_an_interrupted_build_goes_on_after_its_finished_shards(
    factory: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "SHARD_ROWS", 3)
    build_index(corpus, tmp_path / "whole", MINILM, factory=factory, progress=False)
    with monkeypatch.context() as patch:
        count_encoded(patch, stop_after=2)
        with pytest.raises(Interrupted):
            build_index(corpus, tmp_path / "index", MINILM, factory=factory, progress=False)
    assert not (tmp_path / "index").exists()

    encoded = count_encoded(monkeypatch)
    build_index(corpus, tmp_path / "index", MINILM, factory=factory, progress=False)

    assert len(encoded) == 2  # the third shard holds passages 6 and 7
    for name in ("index.faiss", *(["vectors.faiss"] if factory != "Flat" else [])):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "index.partial").exists()


def test_a_build_that_stopped_at_its_last_file_encodes_nothing_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "write_flat", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            build_index(corpus, tmp_path / "index", MINILM, progress=False)
    assert not (tmp_path / "index").exists()

    encoded = count_encoded(monkeypatch)
    build_index(corpus, tmp_path / "index", MINILM, progress=False)
    assert encoded == []


def test_a_changed_corpus_encodes_only_its_new_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", FACTS)
    build_index(corpus, tmp_path / "index", MINILM, progress=False)
    old = vectors_of(tmp_path / "index")
    # Tea goes, so that all rows after it move; Oslo is new and first.
    kept = {title: text for title, text in FACTS.items() if title != "Tea"}
    write_corpus(corpus, {"Oslo": "Oslo is the capital of Norway."} | kept)

    encoded = count_encoded(monkeypatch)
    build_index(corpus, tmp_path / "index", MINILM, progress=False)

    assert encoded == ['"Oslo"\nOslo is the capital of Norway.']
    assert np.array_equal(vectors_of(tmp_path / "index")[1:], np.delete(old, 4, axis=0))
    with DenseIndex.open(tmp_path / "index", corpus) as opened:
        assert titles(opened.search(["capital of Norway"], 1)) == [["Oslo"]]


def test_a_failed_build_leaves_the_old_index_in_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", FACTS)
    build_index(corpus, tmp_path / "index", MINILM, progress=False)
    other = write_corpus(tmp_path / "other.jsonl", {"Oslo": "Oslo is the capital of Norway."})
    with monkeypatch.context() as patch:
        count_encoded(patch, stop_after=0)
        with pytest.raises(Interrupted):
            build_index(other, tmp_path / "index", MINILM, progress=False)

    with DenseIndex.open(tmp_path / "index", corpus) as opened:
        assert len(opened) == 8


NUMBERS = 400  # passages that are not all encoded when the first shard is found
BUILD_IN_SMALL_SHARDS = """
import sys
from pathlib import Path
import retrieval_index.build as module
module.SHARD_ROWS = 32
corpus, index, encoder, factory = sys.argv[1:]
module.build_index(Path(corpus), Path(index), encoder, factory=factory)
"""


@pytest.mark.parametrize("factory", ["Flat", "IVF2,Flat"])
def test_a_build_that_was_killed_resumes_to_the_very_same_files(
    factory: str, tmp_path: Path
) -> None:
    facts = {f"Number {n}": f"The number {n} follows {n - 1}. " * 4 for n in range(NUMBERS)}
    corpus = write_corpus(tmp_path / "c.jsonl", facts)

    def command(index: str) -> list[str]:
        script = [sys.executable, "-c", BUILD_IN_SMALL_SHARDS]
        return [*script, str(corpus), str(tmp_path / index), MINILM, factory]

    subprocess.run(command("whole"), stderr=subprocess.DEVNULL, check=True)
    first = tmp_path / "index.partial/shards/00000.npy"
    with subprocess.Popen(command("index"), stderr=subprocess.DEVNULL) as killed:
        while not first.exists() and killed.poll() is None:
            time.sleep(0.01)
        killed.kill()
    assert not (tmp_path / "index").exists()

    again = subprocess.run(command("index"), stderr=subprocess.PIPE, text=True, check=True)

    told = [line for line in again.stderr.splitlines() if line.startswith("encode: ")]
    encoded = int(told[-1].split()[1])  # "encode: N of N passages"
    assert 0 < encoded <= NUMBERS - 32
    names = ["index.faiss", *(["vectors.faiss"] if factory != "Flat" else [])]
    for name in names:
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


WORKERS = """
import sys
from pathlib import Path
import retrieval_index.build as module
if __name__ == "__main__":
    module.SHARD_ROWS = 32
    module.build_index(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], workers=2)
"""


def test_workers_end_with_a_build_that_was_killed(tmp_path: Path) -> None:
    facts = {f"Number {n}": f"The number {n} follows {n - 1}. " * 4 for n in range(NUMBERS)}
    corpus = write_corpus(tmp_path / "c.jsonl", facts)
    script = tmp_path / "build.py"
    script.write_text(WORKERS)
    command = [sys.executable, str(script), str(corpus), str(tmp_path / "index"), MINILM]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        first = tmp_path / "index.partial/shards/00000.npy"
        while not first.exists() and killed.poll() is None:
            time.sleep(0.01)
        workers = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert alive == []


def test_an_approximate_index_is_built_and_searched(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", MINILM, factory="HNSW8", progress=False)

    with DenseIndex.open(tmp_path / "index", corpus) as opened:
        found = titles(opened.search(list(QUESTIONS), 1))
    assert [hits[0] for hits in found] == list(QUESTIONS.values())


# ---- what does not belong together ------------------------------------------------------------


def test_a_changed_corpus_is_refused_with_the_command_that_builds_again(
    corpus: Path, index: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer.jsonl"
    longer.write_bytes(corpus.read_bytes() + b'{"id": "x", "contents": "\\"X\\"\\nY"}\n')

    with pytest.raises(IndexMismatchError, match=r"bytes, the index was built from") as caught:
        DenseIndex.open(index, longer)
    assert f"python -m retrieval_index build corpus={longer} index={index} encoder={MINILM}" in str(
        caught.value
    )


def test_a_corpus_of_the_same_length_but_other_text_is_refused(
    corpus: Path, index: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(corpus.read_bytes().replace(b"France", b"Greece"))

    with pytest.raises(IndexMismatchError, match="checksum"):
        DenseIndex.open(index, other)


def test_a_corpus_that_is_gone_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.jsonl: no such corpus file"):
        DenseIndex.open(index, tmp_path / "gone.jsonl")


def test_another_encoder_is_refused_before_it_is_loaded(index: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-model"
    other.mkdir()
    (other / "config.json").write_text("{}")  # could not be loaded

    with pytest.raises(IndexMismatchError, match=f"it was built with {MINILM}"):
        DenseIndex.open(index, encoder=str(other))


def test_other_prefixes_are_refused(index: Path) -> None:
    with pytest.raises(IndexMismatchError, match="query_prefix='', not 'query: '"):
        DenseIndex.open(index, query_prefix="query: ")


def test_a_cut_index_file_is_refused(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", MINILM, progress=False)
    file = tmp_path / "index/index.faiss"
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(IndexMismatchError, match="missing or cut off"):
        DenseIndex.open(tmp_path / "index", corpus)


def test_offsets_of_another_corpus_are_refused(corpus: Path, tmp_path: Path) -> None:
    build_index(corpus, tmp_path / "index", MINILM, progress=False)
    np.save(tmp_path / "index/offsets.npy", np.array([0, 10], dtype=np.int64))

    with pytest.raises(IndexMismatchError, match="1 passages, the manifest says 8"):
        DenseIndex.open(tmp_path / "index", corpus)


# ---- what cannot be built ---------------------------------------------------------------------


def nothing_is_left(folder: Path) -> bool:
    return not [p for p in folder.iterdir() if p.name.startswith("index")]


def test_a_bad_line_stops_a_build_before_anything_is_written(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "0", "contents": "x"}\n{broken\n')

    with pytest.raises(CorpusError, match="line 2"):
        build_index(corpus, tmp_path / "index", MINILM, progress=False)
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("factory", ["Flatt", "PQ7", ""])
def test_a_factory_that_faiss_refuses_stops_a_build_before_encoding(
    corpus: Path, tmp_path: Path, factory: str
) -> None:
    with pytest.raises(IndexBuildError, match=f"factory={factory}: FAISS refuses it"):
        build_index(corpus, tmp_path / "index", MINILM, factory=factory, progress=False)
    assert nothing_is_left(tmp_path)


def test_more_clusters_than_passages_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexBuildError, match="FAISS cannot build it from 8 passages"):
        build_index(corpus, tmp_path / "index", MINILM, factory="IVF64,Flat", progress=False)
    assert not (tmp_path / "index").exists()


def test_an_unknown_encoder_stops_a_build(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(EncoderError, match="no-such/model"):
        build_index(corpus, tmp_path / "index", "no-such/model", progress=False)
    assert nothing_is_left(tmp_path)


def test_a_directory_with_other_files_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")

    with pytest.raises(IndexBuildError, match="holds files that are not an index"):
        build_index(corpus, tmp_path, MINILM, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize("argument", ["workers", "threads", "batch_size"])
def test_a_count_below_one_is_refused(corpus: Path, tmp_path: Path, argument: str) -> None:
    with pytest.raises(IndexBuildError, match=f"{argument}=0: must be at least 1"):
        build_index(corpus, tmp_path / "index", MINILM, progress=False, **{argument: 0})


def test_two_builds_of_one_index_do_not_mix(corpus: Path, tmp_path: Path) -> None:
    with (
        new_index_directory(tmp_path / "index"),
        pytest.raises(IndexBuildError, match="another build is writing it"),
    ):
        build_index(corpus, tmp_path / "index", MINILM, progress=False)
