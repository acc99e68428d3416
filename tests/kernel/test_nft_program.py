"""Rules that are read by netlink, written as text and loaded again have the program that they had."""

from pathlib import Path

import pytest

from nftpolicy.netstate.formats import nft_text
from tests.engines import nft_dump
from tests.kernel.nft_corpus import lifted_tables, load, program, relisted_program
from tests.lab.netns import Namespace
from tests.nft_messages import DIRECTORY

pytestmark = pytest.mark.kernel

Key = tuple[str, str]


def programs() -> dict[tuple[Key, str, int], object]:
    """Return the program of each rule of this network namespace."""
    return {
        (key, chain, index): program(table, rule)
        for key, table in nft_dump.read_tables().items()
        for chain, found in table.chains.items()
        for index, rule in enumerate(found.rules)
    }


def different_programs(ruleset: str) -> list[str]:
    """Return the rules of a file that have another program after the way back; runs in the namespace."""
    assert load([ruleset]) == ""
    before, tables = programs(), lifted_tables()
    rules = {
        (key, chain.name, index): nft_text.rule_text(rule)
        for key, table in tables.items()
        for chain in table.chains
        for index, rule in enumerate(chain.rules)
    }
    assert rules.keys() == before.keys()
    empty = [f"flush chain {' '.join(key)} {chain.name}" for key, table in tables.items() for chain in table.chains]
    error = load([*empty, *(f"add rule {' '.join(key)} {chain} {text}" for (key, chain, _), text in rules.items())])
    assert error == ""
    after = programs()
    return [text for place, text in rules.items() if before[place] != after[place]]


def test_rule_of_each_kind_has_same_program_again() -> None:
    with Namespace("program") as space:
        ruleset = Path(DIRECTORY / "grammar.nft").read_text()
        assert space.call(lambda: different_programs(ruleset)) == []


def relisted() -> tuple[object, object, object]:
    """Return the program of a rule, that of its listing, and that of the lifted rule; runs in the namespace."""
    assert load(["add table ip t", "add chain ip t c"]) == ""
    words = "ip saddr & 0xffff0000 == 0xffff0000"
    listing = relisted_program(("ip", "t", "c"), words)
    (first, _), tables = nft_dump.read_tables()["ip", "t"].chains["c"].rules, lifted_tables()
    text = nft_text.rule_text(tables["ip", "t"].chains[0].rules[0])
    assert load([f"add rule ip t c {text}"]) == ""
    table = nft_dump.read_tables()["ip", "t"]
    return program(table, first), listing, program(table, table.chains["c"].rules[-1])


def test_mask_that_nft_lists_as_prefix_is_prefix() -> None:
    with Namespace("program") as space:
        first, listing, lifted = space.call(relisted)
    assert first != listing, "inconclusive: nft has text for the program"
    assert lifted == listing
