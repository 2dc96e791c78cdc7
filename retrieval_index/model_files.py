"""Where an encoder's files are, and what they alone say of its vectors: no weights are loaded.

Three ways to name a model: a local directory; a Hugging Face hub name, with ``@REVISION`` or
without; ``package:NAME`` for a model that lies inside an installed pip package.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from retrieval_index.errors import EncoderError
from retrieval_index.files import sha256_of

__all__ = [
    "encoder_dimension",
    "encoder_fingerprint",
    "hub_revision",
    "own_pooling",
    "read_settings",
    "resolve_encoder",
]

_PACKAGE = "package:"
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]
_WEIGHTS, _INDEX_OF_WEIGHTS = ".safetensors", ".safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_FINGERPRINTED = {".safetensors", ".json", ".txt", ".model"}
_NOT_FINGERPRINTED = {"data_config.json", "special_tokens_map.json"}
_DIMENSION = ("hidden_size", "dim", "d_model")  # of most models, of DistilBERT's kind, of T5's
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def resolve_encoder(name: str) -> Path:
    """The directory of a model: local, inside a pip package, or of the hub (fetched if needed).

    Raises EncoderError where there is none.
    """
    if name.startswith(_PACKAGE):
        return _inside_package(name.removeprefix(_PACKAGE))
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("modules.json", "config.json")):
            raise EncoderError(
                f"encoder {name}: the directory has neither modules.json nor config.json; "
                "give a sentence-transformers or Hugging Face model directory"
            )
        return path
    return _from_hub(name)


def _inside_package(package: str) -> Path:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise EncoderError(
            f"encoder {_PACKAGE}{package}: the package is not installed; run: pip install {package}"
        ) from None
    found = sorted(
        (file for file in distribution.files or () if file.name == "modules.json"),
        key=lambda file: len(file.parts),
    )
    if not found:
        raise EncoderError(
            f"encoder {_PACKAGE}{package}: the package holds no sentence-transformers model "
            "(no modules.json); name a package that does, or a model directory"
        )
    return Path(str(distribution.locate_file(found[0]))).parent


def _from_hub(name: str) -> Path:
    """The snapshot that is here, where it is whole; else the hub's."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    asked: dict[str, Any] = {"revision": revision or None, "allow_patterns": _HUB_FILES}
    partial = ""
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            here = Path(snapshot_download(repository, local_files_only=True, **asked))
            if _is_whole(here):
                return here
            partial = f" ({here} lacks weights or tokenizer)"
        return Path(snapshot_download(repository, **asked))
    except HFValidationError:
        reason = "no such directory, and not a valid hub name"
    except Exception as error:  # a transport boundary: any network failure ends here
        reason = f"no such directory, and the hub did not give it ({type(error).__name__}){partial}"
    raise EncoderError(
        f"encoder {name}: {reason}; give a model directory, a reachable hub name, or "
        f"{_PACKAGE}NAME of an installed pip package that holds a model"
    )


def _is_whole(directory: Path) -> bool:
    """False for what a download left that was killed: weights or tokenizer are missing."""
    files = _files_of_model(directory)
    for index in (file for file in files if file.name.endswith(_INDEX_OF_WEIGHTS)):
        named = read_settings(index).get("weight_map", {}).values()
        if not all((index.parent / name).is_file() for name in named):
            return False
    has_weights = any(file.suffix == _WEIGHTS for file in files)
    return has_weights and any(file.match(name) for name in _TOKENIZERS for file in files)


def hub_revision(directory: Path) -> str:
    """The commit of a hub model's directory; empty for any other."""
    return directory.name if directory.parent.name == "snapshots" else ""


def encoder_fingerprint(directory: Path, pooling: str = "", max_length: int = 0) -> str:
    """SHA-256 over names and contents of the files that decide the vectors of a model, and over
    ``pooling`` and ``max_length`` where they are not the model's own."""
    digest = sha256()
    for file in _files_of_model(directory):
        digest.update(f"{file.relative_to(directory).as_posix()}\0{sha256_of(file)}\n".encode())
    if pooling and pooling != own_pooling(directory):
        digest.update(f"pooling\0{pooling}\n".encode())
    if max_length:
        digest.update(f"max_length\0{max_length}\n".encode())
    return digest.hexdigest()


def _files_of_model(directory: Path) -> list[Path]:
    """What the model is loaded from: files of the directory itself and of its modules' folders, not
    those of other formats (``onnx``). Of all folders where the weights are in none of these."""
    everything = [
        path
        for path in sorted(directory.rglob("*"))
        if path.suffix in _FINGERPRINTED and path.name not in _NOT_FINGERPRINTED and path.is_file()
    ]
    folders = [directory, *(directory / module["path"] for module in _modules(directory))]
    own = [path for path in everything if path.parent in folders]
    return own if any(path.suffix == _WEIGHTS for path in own) else everything


def _modules(directory: Path) -> list[dict[str, str]]:
    """Path and type of each module of a sentence-transformers model; none of another one."""
    found = _read(directory / "modules.json")
    modules = found if isinstance(found, list) else []
    return [m for m in modules if isinstance(m, dict) and {"path", "type"} <= m.keys()]


def own_pooling(directory: Path) -> str:
    """How a model makes one vector of its tokens': ``mean``, ``cls``, ``lasttoken``, ...; several
    joined by ``+``; empty where it has no such layer."""
    modules = _modules(directory)
    if not modules:  # what sentence-transformers gives a bare Hugging Face model
        kinds = read_settings(directory / "config.json").get("architectures") or [""]
        return "lasttoken" if str(kinds[0]).endswith("ForCausalLM") else "mean"
    for module in modules:
        if module["type"].endswith("Pooling"):
            settings = read_settings(directory / module["path"] / "config.json")
            modes = settings.get("pooling_mode")
            if modes is None:
                modes = [mode for key, mode in _LEGACY_POOLING.items() if settings.get(key)]
            return modes if isinstance(modes, str) else "+".join(modes) or "mean"
    return ""


def encoder_dimension(name: str) -> int:
    """Length of a model's vectors, from its configuration alone.

    Raises EncoderError where there is no model, or where its configuration does not say.
    """
    directory = resolve_encoder(name)
    first = next((module["path"] for module in _modules(directory)), "")
    for file, keys in [
        *((c, ("out_features",)) for c in sorted(directory.glob("*_Dense/config.json"))),
        (directory / first / "config.json", _DIMENSION),
    ]:
        settings = read_settings(file)
        for key in keys:
            if isinstance(value := settings.get(key), int):
                return value
    raise EncoderError(
        f"encoder {name}: config.json has none of {', '.join(_DIMENSION)}; name a factory"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    found = _read(path)
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
