"""The hub: whether this process may ask it, whether it answers, and the message where it does not."""

import errno
import os
import sys
import threading

from huggingface_hub import constants, get_session

from medkit import MedkitError

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
WAIT = 8  # seconds for a first answer: the libraries ask again and again, for minutes in all

_AS_STARTED = {name: os.environ.get(name) for name in OFFLINE}, constants.HF_HUB_OFFLINE
_silent = ""  # why the hub does not answer; "" where it does or may not be asked


class HubError(MedkitError):
    """Something that can neither be fetched from the hub nor found in its cache, or cannot be kept there."""


def connect(allowed: bool) -> None:
    """Let the libraries use the hub where that is `allowed` and it answers within WAIT seconds; else they
    read what is in their caches, at once. A connection that breaks later is theirs to try again."""
    global _silent
    set_offline(not allowed)
    _silent = _why_silent() if allowed and not constants.HF_HUB_OFFLINE else ""
    if _silent:
        set_offline(True)


def offline() -> bool:
    """Whether the libraries read their caches only."""
    return constants.HF_HUB_OFFLINE


def silent() -> bool:
    """Whether `connect` asked the hub and it did not answer."""
    return bool(_silent)


def refuse(thing: str, error: Exception) -> None:
    """HubError where reading `thing` failed since the hub does not answer, or for a cache that cannot be
    written; it names the way out. Returns where the cause is another."""
    if _silent:
        raise HubError(
            f"{constants.ENDPOINT} cannot be reached ({_silent}), and {thing} is not in its cache here; "
            "give rows with --data-dir DIR and a model with --set model.base=DIR"
        ) from None
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise HubError(
            f"{thing} cannot be kept: {error.strerror}: {error.filename}; set HF_HOME to a folder that can "
            "be written to"
        ) from None


def set_offline(offline: bool) -> None:
    """Keep this process's libraries, loaded or not, from the hub, or leave them as the process started."""
    before, constants.HF_HUB_OFFLINE = _AS_STARTED
    for name, value in (OFFLINE if offline else before).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    constants.HF_HUB_OFFLINE |= offline
    if datasets := sys.modules.get("datasets"):  # which reads the variables once, when it is imported
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = constants.HF_HUB_OFFLINE


def _why_silent() -> str:
    """Why the hub does not answer; "" where it does, whatever it says. Asks once, with the libraries' proxy
    and certificates, in a thread, since looking up a name has no time limit."""
    answers: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=WAIT)
            answers.append("")
        except Exception as error:  # a proxy, a certificate, an invalid address: many kinds
            answers.append(" ".join(str(error).split())[:200] or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    return answers[0] if answers else f"no answer within {WAIT} s"
