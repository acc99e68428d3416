"""Verdicts of the model against those of a kernel on the same packets; see tests/kernel/recorded_chains.py."""

from collections.abc import Sequence

import pytest

from nftpolicy.model.nft.chains import Ruleset
from nftpolicy.netstate.nft import Table
from tests.kernel.chain_differential import predict
from tests.kernel.recorded_chains import JudgedPacket, recorded

GROUP = 10  # tables of one test
TABLES = recorded()
GROUPS = [TABLES[at : at + GROUP] for at in range(0, len(TABLES), GROUP)]


@pytest.mark.parametrize("group", GROUPS, ids=[str(number) for number in range(len(GROUPS))])
def test_recorded_packets_have_the_verdict_of_the_kernel(group: Sequence[tuple[Table, list[JudgedPacket]]]) -> None:
    for table, packets in group:
        ruleset = Ruleset((table,))
        base = next(chain for chain in table.chains if chain.hook)
        for packet in packets:
            assert predict(ruleset, table, base, packet.probe) == (packet.rules, packet.mark), packet
