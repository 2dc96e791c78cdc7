"""A cross-encoder that reads query and passage together and orders what was found anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval_index.encoder import check_device
from retrieval_index.errors import EncoderError
from retrieval_index.model_files import read_settings, resolve_encoder

__all__ = ["Reranker"]


class Reranker:
    """A sentence-transformers ``CrossEncoder``; a directory, ``package:NAME`` or a hub name.

    Weights are read from safetensors only and no code of the model runs.
    Raises EncoderError where there is no such model, and for one of another kind.
    """

    def __init__(self, name: str, *, batch_size: int = 32, device: str = "cpu") -> None:
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging as transformers_logging

        self.name = name
        self._batch_size = batch_size
        directory = resolve_encoder(name)
        if not _may_be_cross_encoder(directory):
            raise EncoderError(
                f"reranker {name}: no cross-encoder, for it has no layer that scores a pair (the "
                "order would be random); name one such as cross-encoder/ms-marco-MiniLM-L6-v2"
            )
        check_device(device)
        transformers_logging.disable_progress_bar()
        try:
            self._model: Any = CrossEncoder(
                str(directory),
                device=device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # whatever a broken directory makes the libraries raise
            raise EncoderError(
                f"reranker {name}: cannot be loaded from {directory} ({type(error).__name__}: "
                f"{error}); it needs a cross-encoder with weights in safetensors"
            ) from error
        finally:
            transformers_logging.enable_progress_bar()
        if self._model.num_labels != 1:
            raise EncoderError(
                f"reranker {name}: it answers {self._model.num_labels} numbers for a pair; a "
                "reranker's cross-encoder answers one"
            )

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """One for each pair of query and passage; more is better."""
        found = self._model.predict(
            list(pairs), batch_size=self._batch_size, show_progress_bar=False
        )
        return [float(score) for score in found]


def _may_be_cross_encoder(directory: Path) -> bool:
    """False for a sentence-transformers encoder and for a bare Hugging Face one: the library would
    put a layer of random weights on either."""
    if (directory / "modules.json").is_file():
        kind = read_settings(directory / "config_sentence_transformers.json").get("model_type")
        return bool(kind == "CrossEncoder")
    kinds = read_settings(directory / "config.json").get("architectures") or []
    return not kinds or any(not str(kind).endswith("Model") for kind in kinds)
