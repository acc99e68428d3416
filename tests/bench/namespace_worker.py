"""Process inside a namespace that runs functions on request, so that turns can be short."""

from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from tests.lab.netns import Namespace

_PATIENCE = 20  # seconds for one turn


class Worker:
    """Process with `functions` by name; it ends with its namespace."""

    def __init__(
        self, namespace: Namespace, functions: Mapping[str, Callable[..., Any]], gid: int | None = None
    ) -> None:
        self._end, other = Pipe()
        namespace.spawn(_serve, other, functions, gid=gid)
        other.close()

    def __call__(self, name: str, *args: Any) -> Any:
        """Run a function inside and return its result.

        Raises RuntimeError if it failed, TimeoutError or EOFError if there is no answer.
        """
        self._end.send((name, args))
        if not self._end.poll(_PATIENCE):
            raise TimeoutError(f"no answer from {name!r} within {_PATIENCE} s")
        good, value = self._end.recv()
        if not good:
            raise RuntimeError(f"{name}: {value}")
        return value


def _serve(end: Connection, functions: Mapping[str, Callable[..., Any]]) -> None:
    while True:
        name, args = end.recv()
        try:
            answer = True, functions[name](*args)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        end.send(answer)
