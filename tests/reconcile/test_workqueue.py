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
        return [(await work.take())[0] for _ in range(urgent + ordinary)]

    return asyncio.run(run())


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
