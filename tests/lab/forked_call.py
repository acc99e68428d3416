"""Result or exception of a forked child, sent through a pipe."""

import os
import pickle
import select
import time
from collections.abc import Callable
from typing import Any


def answer(sender: int, work: Callable[[], Any]) -> None:
    """Do the work in the child, and send the result or the exception."""
    try:
        message = pickle.dumps((True, work()))
    except BaseException as error:
        try:
            message = pickle.dumps((False, error))
            pickle.loads(message)  # some exceptions can be written but not read
        except Exception:
            message = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    with os.fdopen(sender, "wb") as pipe:
        pipe.write(message)


def read(descriptor: int, timeout: float) -> bytes:
    """Return all bytes of a pipe until its end; TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    parts: list[bytes] = []
    while True:
        if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"no answer within {timeout} s")
        if not (part := os.read(descriptor, 65536)):
            return b"".join(parts)
        parts.append(part)


def result(message: bytes) -> Any:
    """Return the result of the child's work; raise the exception that it raised."""
    good, value = pickle.loads(message)
    if not good:
        raise value
    return value
