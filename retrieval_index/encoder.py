"""The encoder: texts in, normalised float32 vectors out, by any sentence-transformers model.

Three ways to name a model: a local directory; a Hugging Face hub name; ``package:NAME`` for a
model that lies inside an installed pip package. Weights are safetensors only, and no code of
the model's own is run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval_index.errors import EncoderError
from retrieval_index.files import sha256_of

__all__ = [
    "Encoder",
    "TextEncoder",
    "check_device",
    "encoder_dimension",
    "encoder_fingerprint",
    "resolve_encoder",
]

_PACKAGE = "package:"
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]
_FINGERPRINTED = {".safetensors", ".json", ".txt", ".model"}
_NOT_FINGERPRINTED = {"data_config.json", "special_tokens_map.json"}


class TextEncoder(Protocol):
    """What an index needs of an encoder; ``Encoder`` is one."""

    @property
    def fingerprint(self) -> str:
        """Hex checksum that changes with the vectors."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), dimension], each row of length 1."""
        ...


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError:
        reason = "no such directory, and not a valid hub name"
    except Exception as error:  # a transport boundary: any network failure ends here
        reason = f"no such directory, and the hub did not give it ({type(error).__name__})"
    raise EncoderError(
        f"encoder {name}: {reason}; give a model directory, a reachable hub name, or "
        f"{_PACKAGE}NAME of an installed pip package that holds a model"
    )


def encoder_fingerprint(directory: Path) -> str:
    """SHA-256 over names and contents of the files that decide the vectors of a model."""
    digest = sha256()
    for file in sorted(p for p in directory.rglob("*") if p.suffix in _FINGERPRINTED):
        if file.name in _NOT_FINGERPRINTED or not file.is_file():
            continue
        digest.update(f"{file.relative_to(directory).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def encoder_dimension(name: str) -> int:
    """Length of a model's vectors, from its configuration alone: no weights are loaded.

    Raises EncoderError where there is no model, or where its configuration does not say.
    """
    directory = resolve_encoder(name)
    for file, key in [
        *((config, "out_features") for config in sorted(directory.glob("*_Dense/config.json"))),
        (directory / "config.json", "hidden_size"),
    ]:
        if file.is_file() and isinstance(value := json.loads(file.read_text()).get(key), int):
            return value
    raise EncoderError(f"encoder {name}: config.json has no hidden_size; name a factory")


class Encoder:
    """A sentence-transformers model for one process.

    ``threads`` sets torch's threads of the whole process (0: leave them alone). Vectors are
    computed in fp32; they are normalised here whatever the model does.
    """

    def __init__(
        self, name: str, *, threads: int = 1, batch_size: int = 32, device: str = "cpu"
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self.threads = threads
        self.device = device
        self._directory = resolve_encoder(name)
        self._fingerprint = encoder_fingerprint(self._directory)
        import torch

        if threads > 0:
            torch.set_num_threads(threads)
        self._model = _load(self._directory, device, name)
        self._dimension = int(self._model.get_embedding_dimension())

    @property
    def fingerprint(self) -> str:
        """Checksum of weights, tokenizer and pooling."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    def encode(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """float32[len(texts), dimension], rows normalised, in the order of ``texts``.

        Texts are batched by length (longest first), which saves the padding; ``on_progress`` is
        called with the number of texts of each finished batch. Texts over the model's
        limit are cut. Raises EncoderError where a vector is not finite.
        """
        vectors = np.empty((len(texts), self._dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for rows in _batches(order, self.batch_size):
            vectors[rows] = self._model.encode(
                [texts[i] for i in rows],
                batch_size=len(rows),
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            if on_progress is not None:
                on_progress(len(rows))
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise EncoderError(
                f"encoder {self.name}: the vector of {texts[int(bad[0])][:80]!r} is not finite; "
                "its weights are broken, fetch them again"
            )
        return vectors


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def check_device(device: str) -> None:
    """Raises EncoderError for a GPU that PyTorch does not see."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderError(
            f"device={device}: PyTorch sees no usable GPU here; take device=cpu, or install a "
            "PyTorch for CUDA"
        )


def _load(directory: Path, device: str, name: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    check_device(device)
    transformers_logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(directory),
            device=device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": "float32"},
        )
    except Exception as error:  # whatever a broken directory makes the libraries raise
        raise EncoderError(
            f"encoder {name}: cannot be loaded from {directory} ({type(error).__name__}: {error}); "
            "it needs config.json, a tokenizer and weights in safetensors"
        ) from error
    finally:
        transformers_logging.enable_progress_bar()
    return model.eval()
