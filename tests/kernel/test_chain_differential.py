"""Random rules, evaluated by the kernel and by the model, packet by packet."""

import pytest
from hypothesis import given

from .chain_differential import ChainComparison, compare_table, node_with_far_end
from .rule_strategies import EXAMPLES, RULESETS, tables

pytestmark = pytest.mark.kernel


def compare_all(comparison: ChainComparison) -> None:
    @RULESETS
    @given(tables())
    def compare(table):
        compare_table(comparison, table)

    try:
        compare()
    except Exception as error:  # its notes say it all again, at length
        raise AssertionError(f"{type(error).__name__}: {error}") from None


def test_chain_model_on_random_rulesets_agrees_with_kernel(egress) -> None:
    with node_with_far_end() as (node, channel):

        def run() -> tuple[int, int, list[tuple[str, str]]]:
            comparison = ChainComparison(channel)
            compare_all(comparison)
            return comparison.compared, comparison.uncertain, comparison.refused

        compared, uncertain, refused = node.call(run, timeout=60 + 2 * EXAMPLES)
    print(f"{compared} packets compared; left out: {uncertain} that the model does not decide, {len(refused)} rulesets")
    assert compared > 15 * EXAMPLES
    assert not refused
    assert uncertain < compared / 100
