"""The journal: what the learner consumed, on disk before each optimizer step.

    journal/000003-0.safetensors    mini-batch 0 of train step 3: samples, normaliser, version
    journal/published.jsonl         {"version": 3, "digest": "..."}, once the weights are out

Together with the policy that the run began with this is all that its weights depend on: the
``replay`` command computes them again without any other pool, and compares digests. Files are
safetensors: arrays of all samples end to end, no code.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.atomic import needed, sync_directory, write_bytes, write_lines
from pipeline.errors import UserError
from pipeline.ledger_view import check_unused
from pipeline.types import Sample

__all__ = [
    "DIRECTORY_NAME",
    "FileJournal",
    "Journal",
    "JournalEntry",
    "JournalView",
    "NoJournal",
    "read_journal",
]

DIRECTORY_NAME = "journal"
_PUBLISHED = "published.jsonl"
_FORMAT = "1"
_PER_TOKEN = {
    "token_ids": np.int32,
    "loss_mask": np.bool_,
    "round_ids": np.int16,
    "sampler_logprobs": np.float32,
    "advantages": np.float32,
    "loss_weights": np.float32,
    "versions": np.int32,
}
_OPTIONAL = ("ref_logprobs", "proximal_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One optimizer step's input. ``version`` is that of the weights the train step starts from."""

    step: int
    minibatch: int
    num_minibatches: int  # of the train step
    version: int
    normaliser: float
    samples: Sequence[Sample]
    groups: Sequence[int] = ()  # tickets; a group without a gradient has no sample


class Journal(Protocol):
    """What the driver writes."""

    def record(self, entry: JournalEntry) -> None:
        """Blocks until the entry is on disk."""
        ...

    def published(self, version: int, digest: str) -> None:
        """The weights of ``version`` have this digest and are out."""
        ...


class NoJournal:
    """Writes nothing."""

    def record(self, entry: JournalEntry) -> None:
        """Nothing."""

    def published(self, version: int, digest: str) -> None:
        """Nothing."""


class FileJournal:
    """A directory of its own for one run. Raises UserError where it is there of another, unless the
    run is ``resumed``."""

    def __init__(self, directory: Path, *, resumed: bool = False) -> None:
        if not resumed:
            check_unused(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def record(self, entry: JournalEntry) -> None:
        """Whole or not at all. Raises GleanerError where it cannot be written."""
        from safetensors.numpy import save

        tokens = {
            name: _end_to_end([getattr(s, name) for s in entry.samples], dtype)
            for name, dtype in _PER_TOKEN.items()
        }
        for name in _OPTIONAL:
            values = [getattr(s, name) for s in entry.samples]
            if values and all(v is not None for v in values):
                tokens[name] = _end_to_end(values, np.float32)
        of_samples = {
            "lengths": [len(s.token_ids) for s in entry.samples],
            "group_ids": [s.group_id for s in entry.samples],
            "sample_ids": [s.sample_id for s in entry.samples],
        }
        arrays = tokens | {name: np.array(v, np.int64) for name, v in of_samples.items()}
        about = {
            "format": _FORMAT,
            "num_minibatches": str(entry.num_minibatches),
            "version": str(entry.version),
            "normaliser": float(entry.normaliser).hex(),  # exact
            "groups": json.dumps([int(ticket) for ticket in entry.groups]),
        }
        path = self._directory / _name(entry.step, entry.minibatch)
        with _needed(path):
            write_bytes(path, save(arrays, about))

    def published(self, version: int, digest: str) -> None:
        """One line, synced."""
        path = self._directory / _PUBLISHED
        with _needed(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"version": version, "digest": digest}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self._directory)

    def roll_back(self, version: int) -> None:
        """Forget what was published after ``version``."""
        digests = read_journal(self._directory).digests
        kept = [{"version": v, "digest": d} for v, d in sorted(digests.items()) if v <= version]
        path = self._directory / _PUBLISHED
        with _needed(path):
            write_lines(path, map(json.dumps, kept))


@dataclass(frozen=True, slots=True)
class JournalView:
    """The reading end. ``digests`` maps a version to that of its published weights."""

    directory: Path
    digests: dict[int, str]

    @property
    def last_step(self) -> int:
        """The last train step whose weights were published; 0 for none."""
        return max(self.digests)

    def groups(self, step: int) -> list[int]:
        """Tickets of the groups that a train step consumed, each as often as it is in a mini-batch.
        Raises UserError for one that is damaged."""
        return [t for entry in self.entries(step, with_samples=False) for t in entry.groups]

    def entries(self, step: int, *, with_samples: bool = True) -> Iterator[JournalEntry]:
        """The mini-batches of a train step, in order. Raises UserError for one that is damaged."""
        for minibatch in itertools.count():
            path = self.directory / _name(step, minibatch)
            if not path.is_file():
                raise UserError(f"{path} is missing: step {step} cannot be replayed")
            entry = _read_entry(path, step, minibatch, with_samples=with_samples)
            yield entry
            if minibatch + 1 == entry.num_minibatches:
                return


def read_journal(directory: Path) -> JournalView:
    """Raises UserError where there is no journal, or none of its weights were published."""
    path = directory / _PUBLISHED
    if not path.is_file():
        raise UserError(
            f"there is no journal in {directory}: is it in the directory of a training run, with "
            "trainer.journal=true?"
        )
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # without a torn last line
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        digests = {int(row["version"]): str(row["digest"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from None
    if sorted(digests) != list(range(len(digests))) or not digests:
        raise UserError(f"{path} is damaged: versions must go from 0 up without a gap")
    return JournalView(directory, digests)


def _read_entry(path: Path, step: int, minibatch: int, *, with_samples: bool) -> JournalEntry:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            names = list(file.keys()) if with_samples else ["group_ids"]
            arrays = {name: file.get_tensor(name) for name in names}
        if about.get("format") != _FORMAT:
            raise UserError(
                f"{path} has format {about.get('format')}, this version reads {_FORMAT}"
            )
        return JournalEntry(
            step=step,
            minibatch=minibatch,
            num_minibatches=int(about["num_minibatches"]),
            version=int(about["version"]),
            normaliser=float.fromhex(about["normaliser"]),
            samples=tuple(_samples(arrays)) if with_samples else (),
            groups=sorted({*json.loads(about.get("groups", "[]")), *arrays["group_ids"].tolist()}),
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _samples(arrays: dict[str, np.ndarray]) -> Iterator[Sample]:
    ends = np.cumsum(arrays["lengths"])
    names = [*_PER_TOKEN, *(name for name in _OPTIONAL if name in arrays)]
    for i, (length, end) in enumerate(zip(arrays["lengths"], ends, strict=True)):
        tokens: dict[str, Any] = {name: arrays[name][end - length : end] for name in names}
        yield Sample(
            **tokens,
            group_id=int(arrays["group_ids"][i]),
            sample_id=int(arrays["sample_ids"][i]),
        )


def _end_to_end(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _name(step: int, minibatch: int) -> str:
    return f"{step:06d}-{minibatch}.safetensors"


def _needed(path: Path) -> AbstractContextManager[None]:
    remedy = "make room, and resume, or keep none with trainer.journal=false"
    return needed("the journal", path, remedy)
