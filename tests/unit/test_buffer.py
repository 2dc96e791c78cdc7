"""The slot budget bounds the work in flight; admission order bounds staleness exactly."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.buffer import Admission, TakingOrder, TrajectoryBuffer
from pipeline.errors import FullDiskError
from pipeline.ledger import Ledger
from pipeline.ledger_view import GroupState
from pipeline.types import Group
from tests.support.scripted import question, search_round, trajectory


def group(ticket: int, version: int = 0) -> Group:
    return Group(
        group_id=ticket,
        question=question(),
        trajectories=(trajectory(search_round(answer="x"), group_id=ticket),),
        admission_version=version,
    )


def make(
    groups_per_step: int, max_staleness: int, order: TakingOrder = "admission", **samples: int
) -> tuple[TrajectoryBuffer, Ledger]:
    bounds = {"groups_per_step": groups_per_step, "max_staleness": max_staleness}
    ledger = Ledger(**bounds)
    return TrajectoryBuffer(**bounds, ledger=ledger, order=order, **samples), ledger


async def admit(buffer: TrajectoryBuffer, number: int = 1) -> list[int]:
    return [(await buffer.admit("q")).ticket for _ in range(number)]


async def test_admission_waits_once_the_slots_are_spent_and_goes_on_after_a_release():
    buffer, _ = make(1, 1)
    tickets = await admit(buffer, 2)
    waiting = asyncio.create_task(buffer.admit("q"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await buffer.put(tickets[0], group(tickets[0]))
    await buffer.take()
    await asyncio.sleep(0)
    assert not waiting.done()  # the group trains: its slot comes back with the publish
    await buffer.release()
    assert await asyncio.wait_for(waiting, 1) == Admission(ticket=2, version=1)


async def test_groups_are_taken_in_admission_order_whatever_finished_first():
    buffer, _ = make(2, 1)
    await admit(buffer, 4)
    for ticket in (3, 2, 1):
        await buffer.put(ticket, group(ticket))
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()  # group 0 is the oldest and not finished
    await buffer.put(0, group(0))
    assert [g.group_id for g in await asyncio.wait_for(taking, 1)] == [0, 1]


async def test_how_long_groups_waited_is_known_also_of_those_that_a_death_interrupted():
    now = [0.0]
    bounds = {"groups_per_step": 2, "max_staleness": 0, "clock": lambda: now[0]}
    ledger = Ledger(**bounds)
    buffer = TrajectoryBuffer(**bounds, ledger=ledger)
    await admit(buffer, 2)
    for at, ticket in ((10.0, 1), (16.0, 0)):
        now[0] = at
        await buffer.put(ticket, group(ticket))
    now[0] = 20.0
    await buffer.take()
    assert buffer.wait_s == 7.0  # 10 s and 4 s
    resumed = TrajectoryBuffer(**bounds, ledger=ledger)
    resumed.restore(0)
    now[0] = 30.0
    await resumed.take()
    assert resumed.wait_s == 17.0


async def test_by_deadline_a_straggler_is_passed_by_until_it_must_be_waited_for():
    buffer, ledger = make(2, 1, "deadline")
    await admit(buffer, 4)
    for ticket in (3, 1, 2):
        await buffer.put(ticket, group(ticket))
    # version 0: the straggler 0 can still be trained in the next step
    assert [g.group_id for g in await asyncio.wait_for(buffer.take(), 1)] == [1, 2]
    await buffer.release()
    for ticket in await admit(buffer, 2):
        await buffer.put(ticket, group(ticket, 1))
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()  # 3 and 4 are finished, but this is the last step for 0
    await buffer.put(0, group(0))
    assert [g.group_id for g in await asyncio.wait_for(taking, 1)] == [0, 3]
    assert ledger.view().problems() == []


async def test_by_deadline_two_stragglers_of_one_step_leave_room_for_both():
    buffer, _ = make(1, 2, "deadline")
    await admit(buffer, 3)
    await buffer.put(2, group(2))
    # 0 and 1 have the steps from version 1 and 2 left, one each
    assert [g.group_id for g in await asyncio.wait_for(buffer.take(), 1)] == [2]
    await buffer.release()
    await buffer.put(*await admit(buffer), group(3, 1))
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    assert not taking.done()  # both must be trained by the step from version 2
    await buffer.filter(0)  # one of them needs no step any more: 3 may go ahead of 1
    assert [g.group_id for g in await asyncio.wait_for(taking, 1)] == [3]


async def test_a_straggler_that_failed_holds_nothing_up():
    for order in ("admission", "deadline"):
        buffer, _ = make(1, 0, order)
        await admit(buffer)
        taking = asyncio.create_task(buffer.take())
        await asyncio.sleep(0)
        await buffer.fail(0, "died")
        await buffer.put(*await asyncio.wait_for(admit(buffer), 1), group(1))
        assert [g.group_id for g in await asyncio.wait_for(taking, 1)] == [1]


async def test_more_samples_of_a_group_take_parts_of_slots_until_it_is_finished():
    buffer, _ = make(4, 0, group_size=8, oversample=3)
    extras = [(await buffer.admit("q")).extra for _ in range(2)]
    assert (extras, buffer.free_slots) == ([3, 3], 1)  # 32 samples, 22 are under way
    assert (await buffer.admit("q")).extra == 2  # all that is left
    waiting = asyncio.create_task(buffer.admit("q"))
    await buffer.put(0, group(0))
    await asyncio.sleep(0)
    assert not waiting.done()  # 8 and 11 and 10 samples: 3 are free
    await buffer.put(1, group(1))
    await asyncio.sleep(0)
    assert not waiting.done()  # 6 are
    await buffer.put(2, group(2))
    assert (await asyncio.wait_for(waiting, 1)).extra == 0  # the last one of the step


async def test_a_filtered_group_gives_its_slot_back_at_once_and_is_counted():
    buffer, ledger = make(1, 0)
    await buffer.filter(*await admit(buffer))
    await buffer.fail(*await asyncio.wait_for(admit(buffer), 1), "the engine died")
    await asyncio.wait_for(admit(buffer), 1)
    counts = buffer.counts
    assert (counts.admitted, counts.filtered, counts.failed, counts.in_flight) == (3, 1, 1, 1)
    assert [(row.state, row.reason) for row in ledger.view().rows] == [
        (GroupState.FILTERED, ""),
        (GroupState.FAILED, "the engine died"),
        (GroupState.ROLLING, ""),
    ]


async def test_a_group_put_twice_is_an_error():
    buffer, _ = make(1, 0)
    (ticket,) = await admit(buffer)
    await buffer.put(ticket, group(ticket))
    with pytest.raises(KeyError, match="put twice"):
        await buffer.put(ticket, group(ticket))


async def test_taking_before_the_last_step_was_released_is_an_error():
    buffer, _ = make(1, 1)
    for _ in range(2):
        (ticket,) = await admit(buffer)
        await buffer.put(ticket, group(ticket))
    await buffer.take()
    with pytest.raises(RuntimeError, match="not released"):
        await buffer.take()


@pytest.mark.parametrize(("groups", "staleness"), [(0, 1), (1, -1)])
def test_a_budget_that_makes_no_sense_is_refused(groups, staleness):
    with pytest.raises(ValueError, match="must"):
        make(groups, staleness)


def without_slot(ledger: Ledger) -> set[int]:
    """Groups that hold no slot any more."""
    return {row.ticket for row in ledger.view().rows if not row.state.in_flight}


@settings(max_examples=60)
@given(
    groups_per_step=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    order=st.sampled_from(["admission", "deadline"]),
    oversample=st.integers(0, 5),
    seed=st.integers(0, 10_000),
)
def test_staleness_never_exceeds_the_bound_under_random_schedules(
    groups_per_step, max_staleness, order, oversample, seed
):
    """Stragglers, filtered and failed groups in any order: the bound holds and counts add up."""
    rng = random.Random(seed)

    async def simulate() -> list[int]:
        buffer, ledger = make(
            groups_per_step, max_staleness, order, group_size=4, oversample=oversample
        )
        staleness, under_way = [], {}

        async def roll(ticket: int, admitted_at: int) -> None:
            for _ in range(rng.choice([0, 1, 2, 50])):  # a straggler now and then
                await asyncio.sleep(0)
            fate = rng.random()
            under_way[ticket] = 4  # what a finished group keeps until it is trained, at least
            if fate < 0.2:
                await buffer.filter(ticket)
            elif fate < 0.3:
                await buffer.fail(ticket, "chance")
            else:
                await buffer.put(ticket, group(ticket, admitted_at))

        async def admit(tasks: asyncio.TaskGroup) -> None:
            while True:
                admission = await buffer.admit("q")
                under_way[admission.ticket] = 4 + admission.extra
                ended = without_slot(ledger)
                assert sum(n for t, n in under_way.items() if t not in ended) <= (
                    4 * buffer.num_slots
                )
                tasks.create_task(roll(admission.ticket, admission.version))

        async with asyncio.TaskGroup() as tasks:
            admitting = tasks.create_task(admit(tasks))
            for _ in range(8):
                taken = await buffer.take()
                assert len(taken) == groups_per_step
                staleness += [buffer.version - g.admission_version for g in taken]
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                await buffer.release()
            admitting.cancel()
        counts = buffer.counts
        assert counts.trained == 8 * groups_per_step
        assert counts.in_flight <= buffer.num_slots
        assert counts.in_flight == buffer.depth
        view = ledger.view()
        assert view.problems() == []
        found = view.counts()
        assert len(view.rows) == counts.admitted
        assert found[GroupState.TRAINED] == counts.trained
        assert found[GroupState.FILTERED] == counts.filtered
        assert found[GroupState.FAILED] == counts.failed
        assert found[GroupState.BUFFERED] == buffer.depth
        return staleness

    assert max(asyncio.run(simulate())) <= max_staleness


async def test_on_a_full_disk_a_group_waits_until_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.buffer._RETRY_S", 0.001)
    ledger = Ledger(tmp_path / "ledger.sqlite", groups_per_step=1, max_staleness=0)
    buffer = TrajectoryBuffer(groups_per_step=1, max_staleness=0, ledger=ledger)
    (ticket,) = await admit(buffer)
    set_pages = "PRAGMA max_page_count = "
    ledger._database.execute(f"{set_pages}1")  # that is: those that there are
    finished = group(ticket)
    large = replace(finished, errors=("x" * 100_000,))
    putting = asyncio.create_task(buffer.put(ticket, large))
    await asyncio.sleep(0.01)
    assert not putting.done() and buffer.depth == 0
    ledger._database.execute(f"{set_pages}1000")  # a partial checkpoint was removed
    await asyncio.wait_for(putting, 5)
    assert [g.group_id for g in await buffer.take()] == [ticket]
    assert ledger.view().problems() == []


async def test_where_no_room_comes_the_cause_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.buffer._FULL_DISK_S", 0.0)
    ledger = Ledger(tmp_path / "ledger.sqlite", groups_per_step=1, max_staleness=0)
    buffer = TrajectoryBuffer(groups_per_step=1, max_staleness=0, ledger=ledger)
    (ticket,) = await admit(buffer)
    ledger._database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(FullDiskError, match=r"ledger\.sqlite cannot be written"):
        await buffer.put(ticket, replace(group(ticket), errors=("x" * 100_000,)))
