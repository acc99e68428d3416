"""Packets in chains as a kernel has judged them, for tests without a kernel.

    python -m tests.kernel.recorded_chains --write

records them anew, as root: random tables of rule_strategies.py, for which the counters of the kernel agree with the
model. The kernel is named in the file.
"""

import json
import lzma
import os
import sys
from pathlib import Path

from attrs import frozen
from hypothesis import given, settings

from nftpolicy.model.nft.chains import Ruleset
from nftpolicy.netstate.formats.snapshot_codec import decode_value, encode_value
from nftpolicy.netstate.nft import Table
from nftpolicy.netstate.state import NetState

from . import chain_differential, probe_senders
from .rule_strategies import RULESETS, tables

FILE = Path(__file__).parents[1] / "fixtures" / "chain_verdicts.json.xz"
TABLES, PACKETS = 250, 30


@frozen
class JudgedPacket:
    """A packet: comments of the rules that match it, and its mark at the end; None if it is dropped."""

    probe: probe_senders.Probe
    rules: tuple[str, ...]
    mark: int | None


def recorded() -> list[tuple[Table, list[JudgedPacket]]]:
    """Return the recorded tables, each with one base chain, and their packets."""
    probes = probe_senders.probes()
    return [
        (
            decode_value(state, NetState).tables[0],
            [JudgedPacket(probes[at], tuple(rules), mark) for at, rules, mark in packets],
        )
        for state, packets in json.loads(lzma.decompress(FILE.read_bytes()))["tables"]
    ]


class _Recorder(chain_differential.ChainComparison):
    """Comparison that keeps what kernel and model agree on."""

    def __init__(self, *words: object) -> None:
        super().__init__(*words)  # type: ignore[arg-type]
        self.agreed: list[object] = []

    def keep(self, ruleset: Ruleset, table: Table, base: object, probes: list[probe_senders.Probe]) -> None:
        """Keep a table, and the verdict on some of the packets."""
        packets = [
            (self.probes.index(probe), *chain_differential.predict(ruleset, table, base, probe))  # type: ignore[misc]
            for probe in probes[:PACKETS]
        ]
        if packets:
            self.agreed.append((encode_value(NetState((table,))), packets))


def _record(channel: object) -> list[object]:
    recorder = _Recorder(channel)

    @settings(RULESETS, max_examples=TABLES, derandomize=True)
    @given(tables())
    def compare(table: Table) -> None:
        chain_differential.compare_table(recorder, table)

    compare()
    return recorder.agreed


def _write() -> None:
    with chain_differential.node_with_far_end() as (node, channel):
        judged = node.call(_record, channel, timeout=600)
    document = {"kernel": os.uname().release, "tables": judged}
    FILE.write_bytes(lzma.compress(json.dumps(document, sort_keys=True).encode()))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    _write()
