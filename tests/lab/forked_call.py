"""The way back from a forked child: its result, or its exception, through a pipe."""

import os
import pickle
import select
import time
from collections.abc import Callable
from typing import Any


def answer(sender: int, work: Callable[[], Any]) -> None:
    """In the child: do the work, and send what it returns or raises."""
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
    """All that comes through a pipe until its end; TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    parts: list[bytes] = []
    while True:
        if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError(f"no answer within {timeout} s")
        if not (part := os.read(descriptor, 65536)):
            return b"".join(parts)
        parts.append(part)


def result(message: bytes) -> Any:
    """What the child's work returned; what it raised is raised here."""
    good, value = pickle.loads(message)
    if not good:
        raise value
    return value
