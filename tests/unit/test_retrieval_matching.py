"""What is compared when an index opens, and how FAISS's own ones are made ready."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index.corpus import scan_corpus
from retrieval_index.errors import IndexMismatchError
from retrieval_index.matching import _searching, open_passages

LINES = [f'{{"id": "{n}", "contents": "Title {n}\\nText"}}\n' for n in range(4)]
FOUR: Any = SimpleNamespace(count=4)  # of the manifest


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("end", ["\n", ""])
def test_text_that_was_cut_off_or_grew_is_refused(tmp_path: Path, copied: bool, end: str) -> None:
    corpus = tmp_path / "c.jsonl"
    text = "".join(LINES).removesuffix("\n") + end
    corpus.write_text(text)
    np.save(tmp_path / "offsets.npy", scan_corpus(corpus).offsets)
    read = tmp_path / "passages.jsonl" if copied else corpus
    read.write_text(text)
    with open_passages(FOUR, tmp_path, corpus, "again") as store:
        assert store[3].contents == "Title 3\nText"

    for changed in (text[: len(text) // 2], text + LINES[0]):
        read.write_text(changed)
        with pytest.raises(IndexMismatchError, match=rf"{read.name}: {len(changed)} bytes.*again"):
            open_passages(FOUR, tmp_path, corpus, "again")


def test_search_parameters_are_set_before_an_index_moves_to_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = np.eye(8, dtype=np.float32)
    index = faiss.index_factory(8, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    moved: list[int] = []

    def move(_: object, __: int, on_cpu: Any) -> Any:
        moved.append(on_cpu.nprobe)
        return on_cpu

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    _searching(index, 1, "nprobe=3", "cuda")
    assert moved == [3]
