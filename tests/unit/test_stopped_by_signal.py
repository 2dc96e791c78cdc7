"""SIGTERM ends what Ctrl-C would end, and in the same way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.__main__ import _interrupt


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_event_loop_cancels_its_task_and_breaks_off_no_other_code() -> None:
    ended: list[str] = []

    async def all_of_it() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append("the code that it came in")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("the task")
            raise

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(all_of_it())
    assert ended == ["the code that it came in", "the task"]


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_without_an_event_loop_it_is_an_interrupt(ctrl_c: signal.Handlers) -> None:
    signal.signal(signal.SIGINT, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
