"""The queue: what is new first, but nobody waits for ever."""

import asyncio

from asysi_operator.workqueue import URGENT_IN_A_ROW, WorkQueue


def order(urgent, ordinary):
    """Return in which order experiments are taken that were added at once, ordinary ones first."""

    async def run():
        work = WorkQueue()
        for number in range(ordinary):
            work.add(("ordinary", str(number)))
        for number in range(urgent):
            work.add(("urgent", str(number)), urgent=True)
        return [await taken(work) for _ in range(urgent + ordinary)]

    return asyncio.run(run())


async def taken(work):
    """Take the next experiment, be done with it, and return its key."""
    key, _waited = await work.take()
    work.done(key)
    return key


async def takes(work):
    """Return what can be taken now without being done with anything."""
    keys = []
    while True:
        try:
            keys.append((await asyncio.wait_for(work.take(), 0.01))[0])
        except TimeoutError:
            return keys


def test_the_new_come_first():
    """An experiment of which nothing is there yet does not wait for those that are only looked after."""
    assert [namespace for namespace, _ in order(3, 2)] == ["urgent"] * 3 + ["ordinary"] * 2


def test_nobody_waits_for_ever():
    """However many are new, one of the others is taken after every few of them, each queue in its order."""
    taken = order(3 * URGENT_IN_A_ROW, 2)
    where = [place for place, (namespace, _) in enumerate(taken) if namespace == "ordinary"]
    assert where == [URGENT_IN_A_ROW, 2 * URGENT_IN_A_ROW + 1]
    assert [name for namespace, name in taken if namespace == "ordinary"] == ["0", "1"]


def test_each_waits_once():
    """What is added again while it waits, urgent or not, is taken once."""

    async def run():
        work = WorkQueue()
        work.add(("lab", "one"))
        work.add(("lab", "one"), urgent=True)
        await work.take()
        return work.depth

    assert asyncio.run(run()) == 0


def test_while_one_is_new_the_others_go_one_at_a_time():
    """Statuses of a burst do not delay its Jobs: beside a new experiment only one other is reconciled."""

    async def run():
        work = WorkQueue()
        for number in range(3):
            work.add(("ordinary", str(number)))
        work.add(("urgent", "0"), urgent=True)
        first = await takes(work)
        work.done(("ordinary", "0"))
        second = await takes(work)
        work.done(("urgent", "0"))
        return first, second, await takes(work)

    first, second, third = asyncio.run(run())
    assert first == [("urgent", "0"), ("ordinary", "0")]
    assert second == [("ordinary", "1")]
    assert third == [("ordinary", "2")]


def test_without_new_ones_the_others_go_side_by_side():
    """What is reconciled when nothing is new is not held back, and wakes whoever waits for it."""

    async def run():
        work = WorkQueue()
        waiting = [asyncio.create_task(work.take()) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(3):
            work.add(("ordinary", str(number)))
        return {(await asyncio.wait_for(one, 1))[0][1] for one in waiting}

    assert asyncio.run(run()) == {"0", "1", "2"}


def test_a_new_one_that_is_taken_up_again_is_an_ordinary_one():
    """What happens to a new experiment while it is reconciled does not make it new a second time."""

    async def run():
        work = WorkQueue()
        work.add(("lab", "one"), urgent=True)
        await work.take()
        work.add(("lab", "one"), urgent=True)
        work.add(("lab", "two"))
        work.done(("lab", "one"))
        return await takes(work)

    assert asyncio.run(run()) == [("lab", "two"), ("lab", "one")]
