"""Tests that the pages name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def missing_tests(text: str) -> list[str]:
    """Return the named tests that do not exist."""
    return [f"{file}::{name}" for file, name in NAMED.findall(text) if name not in names_of_tests(ROOT / file)]


def names_of_tests(file: Path) -> set[str]:
    if not file.exists():
        return set()
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    assert missing_tests(page.read_text()) == []


def test_missing_test_is_found() -> None:
    own = "tests/unit/test_named_tests.py"
    assert missing_tests(f"{own}::test_missing_test_is_found") == []
    assert missing_tests(f"{own}::test_absent tests/unit/test_absent.py::test_x") == [
        f"{own}::test_absent",
        "tests/unit/test_absent.py::test_x",
    ]
