"""The kernel's program, interpreted, against the model of the rules that the product reads, on random packets."""

from collections import Counter

import pytest
from attrs import evolve
from hypothesis import given

from nftpolicy.kernel.linux import open_kernel
from nftpolicy.netstate.formats import nft_text
from tests.engines import nft_dump
from tests.engines.compare_program import disagreement

from .rule_strategies import EXAMPLES, RULESETS, tables

pytestmark = pytest.mark.kernel

PACKETS = 100


def compare_all(space, tally: Counter[str]) -> None:
    @RULESETS
    @given(tables())
    def compare(table):
        device = next((chain.hook.device for chain in table.chains if chain.hook), None)
        space.nft("flush ruleset")
        if device and device != "lo":
            table = with_device(table, "lo")
        if space.nft(nft_text.table_text(table), check=False).returncode:
            tally["refused"] += 1  # nft refuses what two of its statements imply together
            return
        raw, (read,) = space.call(lambda: (nft_dump.read_tables(), open_kernel().read_all().tables))
        name = next(chain.name for chain in read.chains if chain.hook)
        found = disagreement(raw[read.family, read.name], read, name, PACKETS, tally)
        assert found is None, f"{nft_text.table_text(table)}\n{found}"

    compare()


def with_device(table, device):
    chains = tuple(
        evolve(chain, hook=evolve(chain.hook, device=device)) if chain.hook else chain for chain in table.chains
    )
    return evolve(table, chains=chains)


def test_model_of_read_rules_agrees_with_their_program(node, egress) -> None:
    tally: Counter[str] = Counter()
    compare_all(node, tally)
    print(dict(tally))
    assert tally["one outcome"] > 0.8 * PACKETS * EXAMPLES
    assert min(tally["accept"], tally["drop"]) > 0.05 * tally["one outcome"]
