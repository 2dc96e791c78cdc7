"""The endless stream of encoded episodes that a phase trains on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.episode.protocol import SearchProtocol
from pipeline.warmstart.encode import EncodedEpisode, encode_episode
from pipeline.warmstart.plans import PlannedQuestion
from pipeline.warmstart.script import Mix, ScriptedEpisode, Scripter
from pipeline.warmstart.substitute import NameMaker, substitution

__all__ = ["Teacher"]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Scripts, retells and encodes episodes of ``questions``."""

    questions: Sequence[PlannedQuestion]
    scripter: Scripter
    protocol: SearchProtocol
    make_name: NameMaker

    def episodes(self, mix: Mix, substitute: float, rng: random.Random) -> Iterator[EncodedEpisode]:
        """Episodes without end, every question once a pass, in a new order each pass.

        ``substitute`` is the share of them retold with invented names.
        """
        while True:
            for question in rng.sample(self.questions, len(self.questions)):
                episode = self.scripter.write(question, mix, rng)
                if episode is not None:
                    yield self._encode(episode, substitute, rng)

    def _encode(
        self, episode: ScriptedEpisode, substitute: float, rng: random.Random
    ) -> EncodedEpisode:
        if rng.random() >= substitute:
            return encode_episode(episode, self.protocol)
        hops = episode.question.hops
        names = [n for hop in hops for n in (hop.subject, hop.answer)]
        return encode_episode(episode, self.protocol, substitution(names, self.make_name, rng))
