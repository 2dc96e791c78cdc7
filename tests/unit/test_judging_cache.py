"""The file of verdicts: what was put in comes out, whoever writes at the same time."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.judging.cache import VerdictCache, cache_key
from pipeline.types import Verdict

VERDICTS = [
    Verdict(utility=1, correctness=0, rationale='so "it" is\n\u00e9\U0001f600\x00'),
    Verdict(utility=0.5, correctness=1, rationale=""),
]
NUMBER = 100


def test_what_was_put_in_comes_out_of_a_file_that_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "verdicts.sqlite"
    cache = VerdictCache(path)
    assert cache.get(b"k") is None
    cache.put(b"k", VERDICTS, "a judge")
    assert cache.get(b"k") == VERDICTS
    cache.close()
    again = VerdictCache(path)
    assert again.get(b"k") == VERDICTS
    assert again.get(b"other") is None
    assert len(again) == 1
    again.close()


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    cache.put(b"k", VERDICTS[:1], "first")
    cache.put(b"k", VERDICTS[1:], "second")
    assert cache.get(b"k") == VERDICTS[:1]
    cache.close()


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    parts: list[tuple[Any, ...]] = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("a", "b", "c"),
        (["a", "b"], "c"),
        ("a", ["b", "c"]),
        ("1",),
        (1,),
        (None,),
        ("",),
        (),
        (0.0,),
        (0.7,),
        ("\u00e9",),
        ("e\u0301",),
    ]
    keys = [cache_key(*p) for p in parts]
    assert len(set(keys)) == len(parts)
    assert keys == [cache_key(*p) for p in parts]


def write_many(path: str, writer: int) -> int:
    """Half of the keys are everybody's."""
    cache = VerdictCache(Path(path))
    for n in range(NUMBER):
        own = n % 2
        verdict = Verdict(utility=own, correctness=1, rationale=f"{n} of {writer * own}")
        cache.put(cache_key(n, writer * own), [verdict], f"writer {writer}")
    found = sum(cache.get(cache_key(n, writer * (n % 2))) is not None for n in range(NUMBER))
    cache.close()
    return found


def assert_whole(path: Path, writers: int) -> None:
    cache = VerdictCache(path)
    assert len(cache) == NUMBER // 2 * (writers + 1)
    for writer in range(1, writers + 1):
        for n in range(NUMBER):
            own = n % 2
            assert cache.get(cache_key(n, writer * own)) == [
                Verdict(utility=own, correctness=1, rationale=f"{n} of {writer * own}")
            ]
    cache.close()


def test_processes_that_open_a_new_file_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawn) as pool:
        assert list(pool.map(write_many, [str(path)] * 3, (1, 2, 3))) == [NUMBER] * 3
    assert_whole(path, 3)


def test_threads_that_open_a_new_file_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    ready = threading.Barrier(8)

    def write(writer: int) -> int:
        ready.wait(timeout=60)
        return write_many(str(path), writer)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(1, 9))) == [NUMBER] * 8
    assert_whole(path, 8)


def test_a_cache_is_used_in_another_thread_than_it_was_made_in(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(cache.put, b"k", VERDICTS, "judge").result()
        assert pool.submit(cache.get, b"k").result() == VERDICTS
    cache.close()


def not_a_database(path: Path) -> None:
    path.write_bytes(b"something of yours\n" * 1000)


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("create table verdicts (name text)")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_file_in_place_of_the_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    "spoil", [not_a_database, another_database, a_folder, a_file_in_place_of_the_folder]
)
def test_a_file_that_is_no_cache_is_told_when_it_is_opened(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "folder" / "verdicts.sqlite"
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(UserError, match=rf"judge\.cache={path}.*Remedy"):
        VerdictCache(path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path)
    for n in range(200):
        cache.put(cache_key(n), VERDICTS, "judge")
    cache.close()
    with path.open("r+b") as file:
        file.seek(4096)  # after the page that says what the file is
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(UserError, match=rf"judge\.cache={path}.*malformed"):
        VerdictCache(path)


def test_a_file_that_is_spoilt_while_it_is_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path)
    with sqlite3.connect(path) as other:
        other.execute("drop table verdicts")
    for use in (lambda: cache.get(b"k"), lambda: cache.put(b"k", VERDICTS, "judge")):
        with pytest.raises(UserError, match=rf"judge\.cache={path}"):
            use()
    cache.close()


@pytest.mark.parametrize(
    "row", ["", "no JSON", "5", "[[1]]", '[["x", 0, ""]]', '[[2, 0, ""]]', "[null]"]
)
def test_a_row_that_holds_no_verdicts_is_told(tmp_path: Path, row: str) -> None:
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path)
    with sqlite3.connect(path) as other:
        insert = "insert into verdicts (key, verdicts, judge) values (?, ?, '')"
        other.execute(insert, (b"k", row))
    with pytest.raises(UserError, match=r"judge\.cache"):
        cache.get(b"k")
    cache.close()


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    cache._db.execute("pragma max_page_count = 3")
    with pytest.raises(UserError, match="full"):
        for n in range(1000):
            cache.put(cache_key(n), VERDICTS, "judge")
    cache.close()
