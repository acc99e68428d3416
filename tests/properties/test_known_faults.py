"""Known faults of the prover and of the search for an order: the tests of each see it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.limits import limit
from tests.mutation.__main__ import equivalents
from tests.mutation.child_run import PACKAGE
from tests.mutation.known_faults import FAULTS
from tests.mutation.operators import mutants

pytestmark = pytest.mark.slow


def test_known_faults_are_seen_by_their_tests():
    found = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--known"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=limit(300),
    )
    expected = f"{len(FAULTS)} of {len(FAULTS)} known faults seen\n"
    assert (found.returncode, found.stdout, found.stderr) == (0, expected, "")


@pytest.mark.parametrize("entry", equivalents(), ids=lambda entry: f"{entry.path} {entry.function}: {entry.change}")
def test_each_equivalent_is_a_change_of_the_code(entry):
    assert any(map(entry.matches, mutants(entry.path, (PACKAGE / entry.path).read_text())))
    assert entry.reason
