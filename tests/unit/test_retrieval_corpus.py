"""The corpus reader, its complaints, and random access to passages."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from retrieval_index.corpus import PassageStore, StoredPassage, read_corpus, scan_corpus
from retrieval_index.errors import CorpusError

PARIS = '{"id": "a", "contents": "\\"Paris\\"\\nCapital of France."}'
TOKYO = '{"id": "b", "contents": "\\"Tōkyō\\"\\nCapital of Japan.\\nOn Honshū."}'


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_first_line_is_the_title_without_its_outer_quotes(tmp_path: Path) -> None:
    passages = list(read_corpus(write_lines(tmp_path / "c.jsonl", PARIS, TOKYO)))

    assert [(p.doc_id, p.title, p.text) for p in passages] == [
        ("a", "Paris", "Capital of France."),
        ("b", "Tōkyō", "Capital of Japan.\nOn Honshū."),
    ]


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"The "Big" Tree"\nAn oak.', 'The "Big" Tree', "An oak."),
        ("Bare title\nText.", "Bare title", "Text."),
        ("Only one line", "Only one line", ""),
        ('"', '"', ""),
    ],
)
def test_odd_titles_are_read_as_they_stand(contents: str, title: str, text: str) -> None:
    passage = StoredPassage("0", contents)

    assert (passage.title, passage.text) == (title, text)


def test_a_gzipped_corpus_reads_as_its_plain_one(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "c.jsonl", PARIS, TOKYO)
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    assert list(read_corpus(packed)) == list(read_corpus(plain))
    assert scan_corpus(packed).offsets.tolist() == scan_corpus(plain).offsets.tolist()


def test_a_whole_number_as_id_becomes_its_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", '{"id": 7, "contents": "\\"A\\"\\nB"}')

    assert [p.doc_id for p in read_corpus(path)] == ["7"]


def test_offsets_are_the_bytes_where_lines_start(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", PARIS, TOKYO)

    # "Tōkyō" and "Honshū" hold three letters of two bytes each.
    assert scan_corpus(path).offsets.tolist() == [
        0,
        len(PARIS) + 1,
        len(PARIS) + 1 + len(TOKYO) + 3 + 1,
    ]


def test_equal_contents_have_equal_hashes_whatever_their_ids(tmp_path: Path) -> None:
    twin = PARIS.replace('"a"', '"c"')
    hashes = scan_corpus(write_lines(tmp_path / "c.jsonl", PARIS, TOKYO, twin)).text_hashes

    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "line 2: not valid JSON"),
        ('["a", "b"]', "line 2: not a JSON object"),
        ('{"contents": "x"}', "line 2: key 'id' is missing (keys: 'contents')"),
        ('{"id": "x", "text": "x"}', "line 2: key 'contents' is missing (keys: 'id', 'text')"),
        ('{"id": null, "contents": "x"}', "line 2: 'id' must be a non-empty string, got None"),
        ('{"id": true, "contents": "x"}', "line 2: 'id' must be a non-empty string, got True"),
        ('{"id": "x", "contents": "  "}', "line 2: 'contents' must be a non-empty string"),
        ('{"id": "x", "contents": 3}', "line 2: 'contents' must be a non-empty string"),
        ("", "line 2: blank line; remove it"),
        (
            '{"id": "x", "contents": "a \\ud83d"}',
            "line 2: 'contents' is not valid Unicode (character 2",
        ),
        ('{"id": "\\ud83d", "contents": "a"}', "line 2: 'id' is not valid Unicode (character 0"),
        ("[" * 200_000, "line 2: not valid JSON (maximum recursion depth"),
        (f'{{"id": {"9" * 6000}, "contents": "a"}}', "line 2: not valid JSON (Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_with_its_fault(tmp_path: Path, line: str, complaint: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", PARIS, line, TOKYO)

    for read in (scan_corpus, lambda p: list(read_corpus(p))):
        with pytest.raises(CorpusError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}, {complaint}")


def test_bytes_that_are_not_utf8_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(PARIS.encode() + b'\n{"id": "x", "contents": "\xff\xfe"}\n')

    with pytest.raises(CorpusError, match="line 2: not valid JSON"):
        scan_corpus(path)


def test_a_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", PARIS, TOKYO, TOKYO.replace('"b"', '"a"'))

    with pytest.raises(CorpusError, match="line 3: id 'a' was used in line 1 already"):
        scan_corpus(path)


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"empty\.jsonl: the corpus is empty"):
        scan_corpus(write_lines(tmp_path / "empty.jsonl"))


def test_a_missing_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such corpus file"):
        scan_corpus(tmp_path / "none.jsonl")


@pytest.mark.parametrize("damage", ["cut", "not gzip"])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(f"{PARIS}\n{TOKYO}\n".encode() * 100)
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(packed[:-20] if damage == "cut" else b"plain text")

    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz: broken gzip file"):
        scan_corpus(path)


def open_store(folder: Path, passages: int, cache_size: int) -> PassageStore:
    rows = [{"id": str(n), "contents": f'"Tïtle {n}"\nText {n}'} for n in range(passages)]
    corpus = write_lines(
        folder / "c.jsonl",
        *(json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(rows)),
    )
    np.save(folder / "offsets.npy", scan_corpus(corpus).offsets)
    return PassageStore(corpus, folder / "offsets.npy", cache_size)


@pytest.mark.parametrize("cache_size", [0, 2, 100])
def test_the_store_gives_any_row_in_any_order(tmp_path: Path, cache_size: int) -> None:
    with open_store(tmp_path, 7, cache_size) as store:
        assert len(store) == 7
        for row in (6, 0, 3, 3, 6, 5, 0):
            assert store[row] == StoredPassage(str(row), f'"Tïtle {row}"\nText {row}')


@pytest.mark.parametrize("row", [-1, 7])
def test_a_row_outside_the_corpus_is_an_index_error(tmp_path: Path, row: int) -> None:
    with open_store(tmp_path, 7, 4) as store, pytest.raises(IndexError):
        store[row]


def test_a_gzipped_file_has_no_random_access(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no random access"):
        PassageStore(tmp_path / "c.jsonl.gz", tmp_path / "offsets.npy")


def test_a_parquet_file_reads_as_the_lines_that_it_would_be(tmp_path: Path) -> None:
    rows = [{"id": "0", "contents": '"A"\nFirst.'}, {"id": "1", "contents": '"B"\nZweite, schön.'}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")

    assert [asdict(p) for p in read_corpus(tmp_path / "c.parquet")] == [
        {"doc_id": row["id"], "contents": row["contents"]} for row in rows
    ]


def test_a_parquet_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"id": "0", "text": "First."}])
    parquet.write_table(table, tmp_path / "c.parquet")

    with pytest.raises(CorpusError, match=r"no column contents \(columns: id, text\)"):
        scan_corpus(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ({"id": pyarrow.array([b"0"])}, "column id holds binary; it must hold strings or whole"),
        ({"id": pyarrow.array([1], pyarrow.timestamp("ms"))}, r"column id holds timestamp\[ms\]"),
        ({"id": pyarrow.array([Decimal(1)])}, r"column id holds decimal128\(1, 0\)"),
        (
            {"contents": pyarrow.array([b"a"])},
            "column contents holds binary; it must hold strings$",
        ),
        ({"contents": pyarrow.array([7])}, "column contents holds int64"),
        ({"contents": pyarrow.array([None])}, "column contents holds null"),
    ],
)
def test_a_parquet_file_with_other_columns_than_texts_is_refused(
    tmp_path: Path, column: dict[str, pyarrow.Array], complaint: str
) -> None:
    columns = {"id": pyarrow.array(["0"]), "contents": pyarrow.array(["a"]), **column}
    parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")

    with pytest.raises(CorpusError, match=rf"c\.parquet: {complaint}"):
        scan_corpus(tmp_path / "c.parquet")


def test_parquet_ids_may_be_numbers_and_texts_may_share_a_dictionary(tmp_path: Path) -> None:
    texts = pyarrow.array(["A\nFirst.", "B\nSecond."]).dictionary_encode()
    parquet.write_table(pyarrow.table({"id": [7, 8], "contents": texts}), tmp_path / "c.parquet")

    assert [p.doc_id for p in read_corpus(tmp_path / "c.parquet")] == ["7", "8"]


def test_a_file_that_the_system_does_not_give_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot be read \(File name too long\)"):
        scan_corpus(tmp_path / f"{'c' * 300}.jsonl")
    with pytest.raises(CorpusError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        list(read_corpus(Path("/proc/self/mem")))


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and nothing more")

    with pytest.raises(CorpusError, match="broken Parquet file"):
        scan_corpus(tmp_path / "c.parquet")
