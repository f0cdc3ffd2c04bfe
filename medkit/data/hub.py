"""The Hugging Face hub: offline mode, a check that it can be reached, and the error if it cannot."""

import errno
import os
import sys
import threading

from huggingface_hub import constants, get_session

from medkit import MedkitError

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
WAIT = 8  # seconds for a first answer; the libraries would retry for minutes

_AS_STARTED = {name: os.environ.get(name) for name in OFFLINE}, constants.HF_HUB_OFFLINE
_unreachable = ""  # why the hub cannot be reached; "" if it can, or in offline mode


class HubError(MedkitError):
    """A file that is neither on a reachable hub nor in its cache, or that cannot be written to the cache."""


def connect(allowed: bool) -> None:
    """Let the libraries use the hub if that is `allowed` and it answers within WAIT seconds.

    Otherwise they read their caches only, without delay. If a connection breaks later, the libraries retry.
    """
    global _unreachable
    set_offline(not allowed)
    _unreachable = _connection_error() if allowed and not constants.HF_HUB_OFFLINE else ""
    if _unreachable:
        set_offline(True)


def offline() -> bool:
    """Whether the libraries read their caches only."""
    return constants.HF_HUB_OFFLINE


def unreachable() -> bool:
    """Whether the last `connect` tried to reach the hub and got no answer."""
    return bool(_unreachable)


def raise_if_hub_error(name: str, error: Exception) -> None:
    """Raise HubError if reading `name` failed because of the hub or its cache.

    That is the case after `connect` could not reach the hub, and if the cache cannot be written. Returns for
    any other `error`.
    """
    if _unreachable:
        raise HubError(
            f"{constants.ENDPOINT} cannot be reached ({_unreachable}), and {name} is not in its cache; "
            "give rows with --data-dir DIR and a model with --set model.base=DIR"
        ) from None
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise HubError(
            f"{name} cannot be cached: {error.strerror}: {error.filename}; set HF_HOME to a writable folder"
        ) from None


def set_offline(offline: bool) -> None:
    """Put the libraries, loaded or not, into offline mode, or restore the mode the process started with."""
    variables, constants.HF_HUB_OFFLINE = _AS_STARTED
    for name, value in (OFFLINE if offline else variables).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    constants.HF_HUB_OFFLINE |= offline
    if datasets := sys.modules.get("datasets"):  # it reads the variables only on import
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = constants.HF_HUB_OFFLINE


def _connection_error() -> str:
    """Why the hub cannot be reached; "" if it responds at all.

    Makes one request with the libraries' proxy and certificates, in a thread because DNS lookup has no
    timeout.
    """
    results: list[str] = []  # at most one: the error, or "" for a response

    def request() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=WAIT)
            results.append("")
        except Exception as error:  # many types: proxy, certificate, invalid address
            results.append(" ".join(str(error).split())[:200] or type(error).__name__)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(WAIT)
    return results[0] if results else f"no answer within {WAIT} s"
