"""What the files of a model say, and which of them a snapshot of the hub must have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from retrieval_index.encoder import check_settings
from retrieval_index.errors import EncoderError, IndexMismatchError
from retrieval_index.manifest import FORMAT, Manifest
from retrieval_index.matching import check_encoder
from retrieval_index.model_files import (
    encoder_dimension,
    encoder_fingerprint,
    hub_revision,
    own_pooling,
    resolve_encoder,
)

COMMIT = "a" * 40
MODULES = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]


def write_model(directory: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(
        tmp_path / "model",
        {
            "config.json": {"hidden_size": 8, "max_position_embeddings": 512},
            "model.safetensors": "weights",
            "tokenizer.json": {},
            "modules.json": MODULES,
            "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        },
    )


def test_files_of_other_formats_are_not_in_the_fingerprint(model: Path) -> None:
    before = encoder_fingerprint(model)
    write_model(model, {"onnx/config.json": {}, "openvino/a/tokenizer.json": {}})
    assert encoder_fingerprint(model) == before

    write_model(model, {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}})
    assert encoder_fingerprint(model) != before


def test_weights_in_folders_that_nothing_names_are_in_the_fingerprint(model: Path) -> None:
    (model / "model.safetensors").rename(model / "1_Pooling" / "x.txt")
    write_model(model, {"query_0/model.safetensors": "a"})
    before = encoder_fingerprint(model)
    write_model(model, {"query_0/model.safetensors": "b"})
    assert encoder_fingerprint(model) != before


def test_pooling_and_length_are_in_the_fingerprint_where_they_are_not_the_models_own(
    model: Path,
) -> None:
    own = encoder_fingerprint(model)

    assert encoder_fingerprint(model, "cls") == own
    others = {encoder_fingerprint(model, "mean"), encoder_fingerprint(model, "", 128)}
    assert len(others | {own, encoder_fingerprint(model, "mean", 128)}) == 4


@pytest.mark.parametrize(
    ("files", "pooling"),
    [
        ({"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode_cls_token": 1}}, "cls"),
        ({"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode": "mean"}}, "mean"),
        (
            {
                "modules.json": MODULES,
                "1_Pooling/config.json": {"pooling_mode": ["max", "mean"]},
            },
            "max+mean",
        ),
        ({"modules.json": [{"path": "", "type": "x.StaticEmbedding"}]}, ""),
        ({"config.json": {"architectures": ["BertModel"]}}, "mean"),
        ({"config.json": {"architectures": ["Qwen3ForCausalLM"]}}, "lasttoken"),
    ],
)
def test_a_models_own_pooling_is_read_from_its_files(
    tmp_path: Path, files: dict[str, Any], pooling: str
) -> None:
    assert own_pooling(write_model(tmp_path, files)) == pooling


@pytest.mark.parametrize("key", ["hidden_size", "dim", "d_model"])
def test_the_dimension_is_found_under_every_name_for_it(tmp_path: Path, key: str) -> None:
    assert encoder_dimension(str(write_model(tmp_path, {"config.json": {key: 768}}))) == 768


def test_a_configuration_without_a_dimension_is_an_error(tmp_path: Path) -> None:
    write_model(tmp_path, {"config.json": "not JSON"})
    with pytest.raises(EncoderError, match="none of hidden_size, dim, d_model"):
        encoder_dimension(str(tmp_path))


@pytest.mark.parametrize(
    ("pooling", "max_length", "wrong"),
    [("max", 0, "must be mean or cls"), ("", 513, "at most the 512"), ("", -1, "or more")],
)
def test_settings_that_the_model_cannot_have_are_refused(
    model: Path, pooling: str, max_length: int, wrong: str
) -> None:
    with pytest.raises(EncoderError, match=wrong):
        check_settings("m", model, pooling, max_length)
    check_settings("m", model, "cls", 512)


# ---- the hub ----------------------------------------------------------------------------------


class Hub:
    """Snapshots that are here, and those that can be fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str | None, bool]] = []
        self.here: Path | None = None
        self.there: Path | None = None
        monkeypatch.setattr("huggingface_hub.snapshot_download", self._download)

    def _download(
        self, repository: str, *, revision: str | None, local_files_only: bool = False, **_: Any
    ) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked.append((repository, revision, local_files_only))
        found = self.here if local_files_only else self.there
        if found is None:
            raise LocalEntryNotFoundError("none") if local_files_only else ConnectionError("down")
        return str(found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_a_whole_snapshot_is_used_without_asking_the_hub(hub: Hub, model: Path) -> None:
    hub.here = model

    assert resolve_encoder("org/name") == model
    assert hub.asked == [("org/name", None, True)]


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_snapshot_that_a_killed_download_left_is_fetched_again(
    hub: Hub, model: Path, tmp_path: Path, missing: str
) -> None:
    hub.here = Path(shutil.copytree(model, tmp_path / "partial"))
    (hub.here / missing).unlink()
    hub.there = model
    assert resolve_encoder("org/name") == model

    hub.there = None
    with pytest.raises(EncoderError, match=r"ConnectionError.*lacks weights or tokenizer"):
        resolve_encoder("org/name")


def test_every_part_of_the_weights_must_be_there(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.there = model
    hub.here = Path(shutil.copytree(model, tmp_path / "partial"))
    index = {"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}}
    write_model(hub.here, {"model.safetensors.index.json": index})
    assert resolve_encoder("org/name") == model

    write_model(hub.here, {"more.safetensors": "weights"})
    assert resolve_encoder("org/name") == hub.here


def test_a_revision_is_asked_for_and_read_back(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.here = tmp_path / "snapshots" / COMMIT
    shutil.copytree(model, hub.here)

    assert hub_revision(resolve_encoder("org/name@v1.5")) == COMMIT
    assert hub.asked == [("org/name", "v1.5", True)]
    assert hub_revision(model) == ""


# ---- the manifest -----------------------------------------------------------------------------


def manifest_of(model: Path, **changes: Any) -> Manifest:
    given: dict[str, Any] = dict(
        format=FORMAT, encoder=str(model), encoder_fingerprint=encoder_fingerprint(model),
        dimension=8, metric="inner_product", query_prefix="", passage_prefix="", factory="Flat",
        count=1, corpus="c", corpus_sha256="", corpus_bytes=0, index_bytes=0, versions={},
        created="",
    )  # fmt: skip
    return Manifest(**given | changes)


@pytest.mark.parametrize("pooling", ["", "cls"])
def test_the_models_own_pooling_may_be_given_or_left_out(model: Path, pooling: str) -> None:
    for of_index in (manifest_of(model), manifest_of(model, pooling="cls")):
        check_encoder(of_index, model, str(model), pooling, 0)


def test_another_pooling_or_length_than_the_builds_is_refused(model: Path) -> None:
    with pytest.raises(IndexMismatchError, match="built with pooling='cls', not 'mean'"):
        check_encoder(manifest_of(model), model, str(model), "mean", 0)
    with pytest.raises(IndexMismatchError, match="built with max_length=0, not 64"):
        check_encoder(manifest_of(model), model, str(model), None, 64)


def test_an_index_of_another_commit_is_named_with_its_own(model: Path) -> None:
    other = manifest_of(model, encoder="org/name", encoder_fingerprint="x", revision=COMMIT)
    with pytest.raises(IndexMismatchError, match=f"built with org/name at revision {COMMIT}"):
        check_encoder(other, model, str(model))


@pytest.mark.parametrize("number", [1, 2])
def test_manifests_of_earlier_formats_are_read(model: Path, tmp_path: Path, number: int) -> None:
    manifest_of(model, format=number).write(tmp_path)
    row = json.loads((tmp_path / "manifest.json").read_text())
    for name in ("pooling", "max_length", "revision"):
        del row[name]
    (tmp_path / "manifest.json").write_text(json.dumps(row))

    assert Manifest.read(tmp_path) == manifest_of(model)
