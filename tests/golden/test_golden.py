"""Compiled policies against their golden files. `python -m tests.golden --write` rewrites the files."""

import pytest

from tests.golden import GOLDEN_DIRECTORY, expected_files, topics


@pytest.mark.parametrize("folder", topics(), ids=lambda folder: folder.name)
def test_policy_compiles_to_its_golden_files(folder):
    for name, content in expected_files(folder).items():
        assert (folder / name).read_text() == content, f"{folder.name}/{name}: see tests/golden/__init__.py"


def test_every_golden_directory_has_a_policy():
    assert [folder.name for folder in topics()] == sorted(
        path.name for path in GOLDEN_DIRECTORY.iterdir() if path.name[0].isdigit()
    )
    assert topics()
