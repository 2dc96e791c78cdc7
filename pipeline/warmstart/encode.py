"""Scripted episodes as token ids, segment by segment, exactly as in a rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.episode.protocol import SearchProtocol
from pipeline.types import Passage
from pipeline.warmstart.script import ScriptedEpisode

__all__ = ["EncodedEpisode", "encode_episode"]


@dataclass(frozen=True, slots=True)
class EncodedEpisode:
    """Flat ids of one episode; ``trained`` is True on the policy's own tokens that are learnt,
    ``read`` on the environment's: the prompt and the observations."""

    token_ids: list[int]
    trained: list[bool]
    read: list[bool]

    def __len__(self) -> int:
        return len(self.token_ids)


def encode_episode(
    episode: ScriptedEpisode,
    protocol: SearchProtocol,
    retell: Callable[[str], str] = lambda text: text,
) -> EncodedEpisode:
    """Prompt, then round and observation in turn, each tokenised on its own.

    ``retell`` rewrites every text first (see :mod:`pipeline.warmstart.substitute`).
    The observation of the last round is left out: nothing is sampled after it.
    """
    token_ids = protocol.prompt_ids(retell(episode.question.question.text))
    trained, read = [False] * len(token_ids), [True] * len(token_ids)
    for number, scripted in enumerate(episode.rounds, start=1):
        written = protocol.encode(retell(scripted.text))
        token_ids += written
        trained += [scripted.trained] * len(written)
        read += [False] * len(written)
        if scripted.query is not None and number < len(episode.rounds):
            shown = [_retold(p, retell) for p in scripted.passages]
            observed = protocol.observation_ids(shown)
            token_ids += observed
            trained += [False] * len(observed)
            read += [True] * len(observed)
    return EncodedEpisode(token_ids, trained, read)


def _retold(passage: Passage, retell: Callable[[str], str]) -> Passage:
    return replace(passage, title=retell(passage.title), text=retell(passage.text))
