"""Retries hub requests when the network fails, and marks failures that another endpoint may not have."""

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from asysi.contract.errors import ConfigError

log = logging.getLogger("asysi.weights")
_PAUSE = 1.0
"""Seconds before the second attempt; each later pause doubles, up to _LONGEST."""
_LONGEST = 30.0


class ElsewhereError(ConfigError):
    """A failure that another endpoint may not have."""


class NoRevisionError(ElsewhereError):
    """The model has no such revision."""


def ask_again(action: Callable[[], Any], what: str, retries: int, pause: Callable[[float], None]) -> Any:
    """Return what `action` returns; network failures are retried with growing pauses.

    Raises:
        ConfigError: the hub refuses, or the network failed at every attempt.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for attempt in range(retries + 1):
        try:
            return action()
        except GatedRepoError as error:
            raise ConfigError(
                f"{what}: the model is gated; ask for access and set HF_TOKEN ({error})"
            ) from error
        except HFValidationError as error:
            raise ConfigError(f"{what}: the hub has no such model or revision ({error})") from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            kind = NoRevisionError if isinstance(error, RevisionNotFoundError) else ElsewhereError
            raise kind(f"{what}: the hub has no such model or revision ({error})") from error
        except OfflineModeIsEnabled as error:
            raise ConfigError(f"{what}: HF_HUB_OFFLINE is set; unset it, or take --offline") from error
        except (HfHubHTTPError, OSError, *_network_errors()) as error:
            if attempt == retries or _final(error):
                failure = ConfigError if _is_ours(error) else ElsewhereError
                raise failure(
                    f"{what}: it failed {attempt + 1} times, at last by {type(error).__name__}: "
                    f"{error}. Try later, or "
                    "another --endpoint; what was fetched is kept"
                ) from error
            seconds = min(_LONGEST, _PAUSE * 2**attempt)
            log.warning(
                "%s: attempt %d failed (%s: %s); again in %.0f s",
                what,
                attempt + 1,
                type(error).__name__,
                error,
                seconds,
            )
            pause(seconds)
    raise AssertionError(what)


def _network_errors() -> list[type[Exception]]:
    """Return the errors of the client that huggingface_hub uses: httpx2, or httpx before 2.0."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(import_module(name).HTTPError)
    return found


def _final(error: Exception) -> bool:
    """Return whether a retry cannot help: the disk is full, or the hub refuses permanently."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _is_ours(error) or status in {401, 403, 404, 410}


def _is_ours(error: Exception) -> bool:
    """Return whether this machine is at fault, so that another endpoint cannot help."""
    return getattr(error, "errno", None) in {errno.ENOSPC, errno.EACCES, errno.EROFS}
