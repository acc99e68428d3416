"""A check of many items, such as all files, as one test: it is quicker than a test of each."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def check_all(items: Iterable[Item], title: Callable[[Item], str] = str) -> Callable[[Callable[[Item], None]], object]:
    """Return a decorator that makes a check of one item a test of all; the test names each item that fails."""
    checked = list(items)
    assert checked, "nothing to check"

    def decorate(check: Callable[[Item], None]) -> Callable[[], None]:
        def test() -> None:
            failures = []
            for item in checked:
                try:
                    check(item)
                except AssertionError as error:
                    failures.append(f"{title(item)}: {error}")
            assert not failures, "\n".join(failures)

        test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
        test.__module__ = check.__module__
        return test

    return decorate
