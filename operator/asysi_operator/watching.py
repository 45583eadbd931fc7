"""Watches the objects of experiments by kind and namespace: list, then watch, forever.

One thread per watch, blocked in a socket read between changes. Each batch is handed to the event loop, and
the thread waits until it has been processed, so no backlog builds up between the two.
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
"""First and maximum delay in seconds before a failed watch restarts; doubled each time it yields nothing."""
TOGETHER = 10
"""Objects of a list that are handed over per batch."""
log = logging.getLogger("asysi.operator")
Taken = Callable[[ResourceKind, Sequence[Change]], Coroutine[object, object, None]]
"""Callback that receives changes."""
Listed = Callable[[ResourceKind, str | None, dict[Key, str]], Coroutine[object, object, None]]
"""Callback for a completed list: the objects of a namespace and their resource versions."""


@dataclass
class Watches:
    """The operator's watches. They start with `start` and end with the process.

    Args:
        cluster: client of the API server.
        kinds: kinds to watch.
        namespaces: namespaces to watch; empty means all.
        take: called in the event loop with each batch of changes.
        listed: called in the event loop with the contents of a list, once all of it has been taken.
    """

    cluster: Cluster
    kinds: Sequence[ResourceKind]
    namespaces: Sequence[str]
    take: Taken
    listed: Listed
    _unlisted: set[tuple[str, str | None]] = field(default_factory=set)
    _all_listed: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> "asyncio.Future[None]":
        """Start the watches; the returned future fails if a watch thread dies, which should never happen."""
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
        """Wait until every watch has completed its first list: no decision is made on partial state."""
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
        except BaseException as error:  # noqa: BLE001 - whatever the error, a watch is lost
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
                log.warning("restarting a watch: %s", error)
            time.sleep(min(LAST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 16)))
            failures += 1

    def _list(self, kind: ResourceKind, namespace: str | None, loop: asyncio.AbstractEventLoop) -> str:
        """List existing objects; returns the resource version to watch from."""
        there: dict[Key, str] = {}
        at = ""
        for items, version in self.cluster.listing(kind, namespace):
            at = at or version  # after an expired continue token, later pages have a newer version
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
