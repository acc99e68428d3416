from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import Guarded, guarded_lab
from tests.lab.topology import missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            item.add_marker(pytest.mark.skipif(bool(missing()), reason=f"a lab needs {', '.join(missing())}"))


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A mesh node with the shipped policy in force and its resolver running."""
    with guarded_lab(resolver=True) as made:
        yield made
