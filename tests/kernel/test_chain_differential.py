"""Rules made at random, asked of the kernel and of the model, packet by packet."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .chain_differential import Theatre, play, scene
from .rule_strategies import tables

pytestmark = pytest.mark.kernel

EXAMPLES = int(os.environ.get("CHAINS_EXAMPLES", "60"))
# A disagreement is told with the one packet that it takes; to shrink the rules too takes minutes.
PHASES = [Phase.generate, Phase.shrink] if os.environ.get("CHAINS_SHRINK") else [Phase.generate]


def compare_all(theatre: Theatre) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES, suppress_health_check=list(HealthCheck)
    )
    @given(tables())
    def compare(table):
        play(theatre, table)

    try:
        compare()
    except Exception as error:  # its notes say it all again, at length
        raise AssertionError(f"{type(error).__name__}: {error}") from None


def test_chain_model_on_random_rulesets_agrees_with_kernel(egress) -> None:
    with scene() as (node, channel):

        def run() -> tuple[int, int, list[tuple[str, str]]]:
            theatre = Theatre(channel)
            compare_all(theatre)
            return theatre.compared, theatre.doubted, theatre.refused

        compared, doubted, refused = node.call(run, timeout=60 + 2 * EXAMPLES)
    print(f"{compared} packets compared; left out: {doubted} that the model has doubts about, {len(refused)} rulesets")
    assert compared > 15 * EXAMPLES
    assert not refused
    assert doubted < compared / 100
