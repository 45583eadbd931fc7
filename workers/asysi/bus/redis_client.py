"""Connections to Redis: alone, behind Sentinels, or a Cluster; with back-off while it is away."""

from typing import Any, cast
from urllib.parse import parse_qs

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import RedisCluster
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004
from redis.retry import Retry
from redis.sentinel import Sentinel

from asysi.bus.stream import StreamError

_ANSWER_SECONDS = 10.0
_RETRIES, _FIRST_SECONDS, _MOST_SECONDS = 40, 0.02, 1.0
"""About half a minute in all."""


class RedisClient:
    """A client that repeats what failed, and one that does not, for reads that change who owns an entry.

    Args:
        patient: repeats a command with back-off while Redis is away.
        reading: raises at once.
    """

    def __init__(self, patient: Any, reading: Any) -> None:
        self._patient = patient
        self.reading = reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._patient, name)


def connect(url: str) -> RedisClient:
    """Return a client for a URL.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://` as redis-py takes them;
            `redis+sentinel://HOST:PORT,…/MASTER` (`rediss+sentinel://` with TLS); `redis+cluster://HOST:PORT`
            (`rediss+cluster://`). A password stands before an @.

    Raises:
        StreamError: the URL is none of these.
    """
    patience: dict[str, Any] = {
        "retry": Retry(ExponentialBackoff(_MOST_SECONDS, _FIRST_SECONDS), _RETRIES),
        "retry_on_error": [ConnectionError, TimeoutError, BusyLoadingError],
        "socket_timeout": _ANSWER_SECONDS,
    }
    haste: dict[str, Any] = {"socket_timeout": _ANSWER_SECONDS}
    try:
        return RedisClient(_client(url, patience), _client(url, haste))
    except ValueError as error:
        raise StreamError(f"{url.rpartition('@')[2]} is no URL of Redis: {error}") from error


def _client(url: str, options: dict[str, Any]) -> Any:
    scheme, _, rest = url.partition("://")
    transport, _, kind = scheme.partition("+")
    if not kind:
        return redis.Redis.from_url(url, **options)
    tls = {"ssl": True} if transport == "rediss" else {}
    if kind == "cluster":
        options = {key: value for key, value in options.items() if key == "socket_timeout"}
        return RedisCluster.from_url(f"{transport}://{rest}", **options)
    if kind != "sentinel":
        raise ValueError(f"its scheme is {scheme}")
    credentials, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    master, _, query = path.partition("?")
    if not master:
        raise ValueError("the name of the master is missing: redis+sentinel://HOST:PORT,…/MASTER")
    addresses = [
        (host, int(port or 26379)) for host, _, port in (one.partition(":") for one in hosts.split(","))
    ]
    user, _, password = credentials.partition(":")
    own = {"username": user or None, "password": password or None} if credentials else {}
    database = int(parse_qs(query).get("db", ["0"])[0])
    sentinel: Any = cast(Any, Sentinel)(addresses, socket_timeout=_ANSWER_SECONDS, **tls)
    return sentinel.master_for(master, db=database, **own, **tls, **options)
