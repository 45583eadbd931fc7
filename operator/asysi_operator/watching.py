"""Follows the objects that experiments have, by kind and namespace: a listing, then each change, for ever.

A thread each: between two changes they stand still in the read of a socket. What they bring is handed over to
the event loop, and a thread waits until that has taken it in: nothing piles up between the two.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

from asysi_operator.cache import Key, key_of
from asysi_operator.cluster import Change, Cluster, GoneError, RejectedError, ResourceKind, UnavailableError

FIRST_WAIT, LAST_WAIT = 0.2, 10.0
"""Seconds until a watch that has failed begins anew: doubled each time that it brings nothing."""
TOGETHER = 10
"""Objects of a listing that are handed over at once."""
log = logging.getLogger("asysi.operator")
Taken = Callable[[ResourceKind, Sequence[Change]], Coroutine[object, object, None]]
"""Takes in what has happened."""
Listed = Callable[[ResourceKind, str | None, dict[Key, str]], Coroutine[object, object, None]]
"""Takes in that a listing is complete: what is there in a namespace, and at which version."""


@dataclass
class Watches:
    """The watches of an operator. They begin with `start`, and end with the process.

    Args:
        cluster: where from.
        kinds: what is watched.
        namespaces: where; none means everywhere.
        take: called in the event loop with what happens.
        listed: called there with what a listing held, once it is taken in.
    """

    cluster: Cluster
    kinds: Sequence[ResourceKind]
    namespaces: Sequence[str]
    take: Taken
    listed: Listed
    _unlisted: set[tuple[str, str | None]] = field(default_factory=set)
    _all_listed: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> "asyncio.Future[None]":
        """Begin; returns what fails when a watch has died, which none ever should."""
        loop = asyncio.get_running_loop()
        dead: asyncio.Future[None] = loop.create_future()
        for kind in self.kinds:
            for namespace in self.namespaces or (None,):
                self._unlisted.add((kind.kind, namespace))
                threading.Thread(
                    target=self._guard,
                    args=(kind, namespace, loop, dead),
                    name=f"watch {kind.plural} {namespace or ''}".strip(),
                    daemon=True,
                ).start()
        return dead

    async def begun(self) -> None:
        """Wait until each has brought what is there: nothing is decided about what is half known."""
        await self._all_listed.wait()

    def _guard(
        self,
        kind: ResourceKind,
        namespace: str | None,
        loop: asyncio.AbstractEventLoop,
        dead: "asyncio.Future[None]",
    ) -> None:
        try:
            self._follow(kind, namespace, loop)
        except BaseException as error:  # noqa: BLE001 - whatever it was, there is a watch less
            if not loop.is_closed():
                loop.call_soon_threadsafe(_fail, dead, error)

    def _follow(self, kind: ResourceKind, namespace: str | None, loop: asyncio.AbstractEventLoop) -> None:
        version, failures = "", 0
        while True:
            try:
                version = version or self._list(kind, namespace, loop)
                for changes in self.cluster.changes(kind, namespace, version):
                    happened = [one for one in changes if one[0] != "BOOKMARK"]
                    asyncio.run_coroutine_threadsafe(self.take(kind, happened), loop).result()
                    version, failures = str(changes[-1][1]["metadata"]["resourceVersion"]), 0
            except GoneError:
                version = ""
            except (UnavailableError, RejectedError) as error:
                log.warning("a watch restarts: %s", error)
            time.sleep(min(LAST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 16)))
            failures += 1

    def _list(self, kind: ResourceKind, namespace: str | None, loop: asyncio.AbstractEventLoop) -> str:
        """Bring what is there; returns the version from which on changes are wanted."""
        there: dict[Key, str] = {}
        at = ""
        for items, version in self.cluster.listing(kind, namespace):
            at = at or version  # a page that is no longer kept is followed by one of a later version
            while some := [("ADDED", item) for item in itertools.islice(items, TOGETHER)]:
                there |= {key_of(item): item["metadata"]["resourceVersion"] for _, item in some}
                asyncio.run_coroutine_threadsafe(self.take(kind, some), loop).result()
        asyncio.run_coroutine_threadsafe(self._complete(kind, namespace, there), loop).result()
        return at

    async def _complete(self, kind: ResourceKind, namespace: str | None, there: dict[Key, str]) -> None:
        await self.listed(kind, namespace, there)
        self._unlisted.discard((kind.kind, namespace))
        if not self._unlisted:
            self._all_listed.set()


def _fail(dead: "asyncio.Future[None]", error: BaseException) -> None:
    if not dead.done():
        dead.set_exception(error)
