"""The default task for other libraries' trainers: their episodes go by our protocol and index."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import GleanerConfig
from pipeline.episode.protocol import SearchProtocol
from pipeline.episode.rewards import exact_match
from pipeline.tasks.files import read_questions
from pipeline.types import Passage, Question

__all__ = ["Episode", "SearchTask", "policy_with_stops", "step_notes"]

QUESTIONS = 2000


@dataclass
class Episode:
    """One trajectory. ``mask`` is 1 where the policy wrote the token."""

    question: Question
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    answer: str | None = None
    rounds: int = 0
    going_on: bool = True

    @property
    def context(self) -> list[int]:
        """What the policy goes on from."""
        return self.prompt_ids + self.completion_ids

    @property
    def reward(self) -> float:
        """1 where the answer is right, else 0."""
        return float(exact_match(self.answer, self.question.answers))


class SearchTask:
    """Questions, index and protocol of ``config``."""

    def __init__(self, config: GleanerConfig, tokenizer: Any) -> None:
        from retrieval_index.index import DenseIndex

        self._config = config
        self._protocol = SearchProtocol(config.protocol, tokenizer)
        if self._protocol.stop_strings:
            raise SystemExit("this peer needs a tokenizer with one token for a closing tag")
        self.questions = read_questions(Path(config.task.train))[:QUESTIONS]
        self._by_text = {question.text: question for question in self.questions}
        self._index = DenseIndex.open(
            Path(config.task.index),
            Path(config.task.corpus),
            config.retriever.encoder,
            threads=0,
            batch_size=config.retriever.batch_size,
        )

    @property
    def stop_token_ids(self) -> list[int]:
        """Where the policy's turn ends."""
        return self._protocol.stop_token_ids

    def episode(self, question: str) -> Episode:
        """A new one."""
        return Episode(self._by_text[question], self._protocol.prompt_ids(question))

    def take(self, episode: Episode, token_ids: Sequence[int]) -> str | None:
        """What the policy wrote in a round; returns the query that it asks, if any."""
        episode.completion_ids += token_ids
        episode.mask += [1] * len(token_ids)
        episode.rounds += 1
        action = self._protocol.parse(self._protocol.decode(token_ids))
        episode.answer = action.answer
        is_last = episode.rounds == self._config.protocol.max_rounds
        episode.going_on = bool(action.queries) and action.answer is None and not is_last
        return action.queries[0] if episode.going_on else None

    def search(self, queries: Sequence[str]) -> list[list[int]]:
        """The tokens that show the passages found, for each query."""
        found = self._index.search(queries, self._config.protocol.top_k)
        return [
            self._protocol.observation_ids(
                [Passage(doc_id=h.doc_id, title=h.title, text=h.text, score=h.score) for h in hits]
            )
            for hits in found
        ]

    def observe(self, episode: Episode, token_ids: Sequence[int]) -> None:
        """Show them; where they do not fit, the episode is truncated, as ours."""
        if len(episode.context) + len(token_ids) >= self._config.policy.max_model_len:
            episode.going_on = False
            return
        episode.completion_ids += token_ids
        episode.mask += [0] * len(token_ids)


def policy_with_stops(config: GleanerConfig, directory: Path, stops: Sequence[int]) -> Path:
    """The policy, in whose ``generation_config.json`` a turn ends where our protocol ends it."""
    path = directory / "policy"
    shutil.copytree(config.policy.path, path)
    file = path / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**settings, "eos_token_id": list(stops)}))
    return path


def step_notes(ended: list[dict[str, float]], wanted: dict[str, str]) -> Any:
    """A TrainerCallback that adds to ``ended`` when each step ended, the CPU seconds spent until
    then by this process and its children, and what the trainer logs, by the names of ``wanted``
    (the trainer's -> ours)."""
    import psutil
    from transformers import TrainerCallback

    class Notes(TrainerCallback):
        """A line a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            own = psutil.Process()
            times = [p.cpu_times() for p in (own, *own.children(recursive=True))]
            cpu_s = sum(t.user + t.system for t in times)
            ended.append({"at": time.monotonic(), "cpu_s": cpu_s})
            print(f"step {state.global_step}", flush=True)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for name, value in (logs or {}).items():
                if ended and name in wanted and value is not None:
                    ended[-1][wanted[name]] = float(value)

    return Notes()
