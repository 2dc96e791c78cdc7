"""A cross-encoder that reads query and passage together and orders what was found anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval_index.encoder import resolve_encoder
from retrieval_index.errors import EncoderError

__all__ = ["Reranker"]


class Reranker:
    """A sentence-transformers ``CrossEncoder``; a directory, ``package:NAME`` or a hub name.

    Weights are read from safetensors only and no code of the model runs.
    Raises EncoderError where there is no such model.
    """

    def __init__(self, name: str, *, batch_size: int = 32, device: str = "cpu") -> None:
        from sentence_transformers import CrossEncoder

        self.name = name
        self._batch_size = batch_size
        directory = resolve_encoder(name)
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
