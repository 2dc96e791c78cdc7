"""The encoder: texts in, normalised float32 vectors out, by any sentence-transformers model.

Weights are safetensors only, and no code of the model's own is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval_index.errors import EncoderError
from retrieval_index.model_files import (
    encoder_fingerprint,
    own_pooling,
    read_settings,
    resolve_encoder,
)

__all__ = ["POOLINGS", "Encoder", "TextEncoder", "check_device", "check_settings"]

POOLINGS = ("mean", "cls")  # that can be put in the place of a model's own


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


class Encoder:
    """A sentence-transformers model for one process.

    ``threads`` sets torch's threads of the whole process (0: leave them alone). Vectors are
    computed in fp32; they are normalised here whatever the model does. ``pooling`` (mean, cls) and
    ``max_length`` (tokens, beyond which a text is cut) take the place of the model's own (empty
    and 0). Raises EncoderError.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        batch_size: int = 32,
        device: str = "cpu",
        pooling: str = "",
        max_length: int = 0,
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self.threads = threads
        self.device = device
        self._directory = resolve_encoder(name)
        check_settings(name, self._directory, pooling, max_length)
        self._fingerprint = encoder_fingerprint(self._directory, pooling, max_length)
        import torch

        if threads > 0:
            torch.set_num_threads(threads)
        self._model = _load(self._directory, device, name)
        if pooling and pooling != own_pooling(self._directory):
            _set_pooling(self._model, pooling, name)
        if max_length:
            self._model.max_seq_length = max_length
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


def check_settings(name: str, directory: Path, pooling: str, max_length: int) -> None:
    """Raises EncoderError for a pooling that cannot be set, and for a ``max_length`` that the model
    has no positions for."""
    if pooling not in ("", own_pooling(directory), *POOLINGS):
        raise EncoderError(
            f"encoder {name}: pooling={pooling}: must be {' or '.join(POOLINGS)}, or empty for the "
            "model's own"
        )
    positions = read_settings(directory / "config.json").get("max_position_embeddings", max_length)
    if not 0 <= max_length <= positions:
        raise EncoderError(
            f"encoder {name}: max_length={max_length}: must be 0 (the model's own) or more, and at "
            f"most the {positions} positions of the model"
        )


def _set_pooling(model: Any, pooling: str, name: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for number, module in enumerate(model):
        if isinstance(module, Pooling):
            model[number] = Pooling(
                module.embedding_dimension, pooling, include_prompt=module.include_prompt
            )
            return
    raise EncoderError(
        f"encoder {name}: pooling={pooling}: the model has no pooling layer; leave it out"
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
