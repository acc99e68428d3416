"""Options, markers and order of all tests; see tests/README.md."""

import pytest

from tests import profiles


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--alone",
        choices=("yes", "no", "only"),
        default="yes",
        help="run the tests marked 'alone' too (yes), leave them out (no), or run them only (only)",
    )


def pytest_configure(config: pytest.Config) -> None:
    profiles.load(config.getoption("--hypothesis-profile"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the slow modules first, so that parallel processes end at about the same time; select by --alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable: the order inside a module stays
    wanted = config.getoption("--alone")
    if wanted == "yes":
        return
    keep = [item for item in items if bool(item.get_closest_marker("alone")) is (wanted == "only")]
    if len(keep) < len(items):
        kept = set(keep)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = keep
