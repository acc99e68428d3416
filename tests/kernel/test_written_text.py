"""Text with hostile names that a gate has let pass, read by the programs that it is for."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice

import pytest

from fuzz.written_text import hostile_texts
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_json_decode
from tests.lab.netns import Namespace

pytestmark = pytest.mark.kernel

SEEDS = [bytes([high, low]) for high in range(12) for low in range(250)]
ENOUGH = 12  # texts that a program has read


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    with Namespace("text") as namespace:
        yield namespace


def texts(name: str, kinds: set[str]) -> Iterator[str]:
    """Yield texts of a writer with hostile text."""
    for seed in SEEDS:
        found = hostile_texts(name, seed)
        if found is not None:
            yield from (text for kind, text in found[3] if kind in kinds and (kind, text) not in found[2])


def loaded(space: Namespace, text: str) -> list[object] | None:
    """Return the shape of the tables that nft loads: names of tables, and statements of each rule; None if it refuses."""
    space.nft("flush ruleset")
    if space.nft(text, check=False).returncode:
        return None
    listing = json.loads(space.run(["nft", "-j", "list", "ruleset"]).stdout)
    return [shape(table) for table in nft_json_decode.decode_ruleset(listing)]


def shape(table: nft.Table) -> object:
    rules = [[len(rule.statements) for rule in chain.rules] for chain in table.chains]
    parts = (table.sets, table.maps, table.objects, table.counters, table.flowtables)
    return table.family, len(table.chains), sorted(rules), [len(part) for part in parts]


def test_nft_loads_the_same_tables_or_refuses(space: Namespace) -> None:
    compared = 0
    for seed in SEEDS:
        found = hostile_texts("text-tables", seed)
        if compared == ENOUGH:
            break
        if found is None:
            continue
        ((_, original),), ((_, hostile),) = found[2], found[3]
        after = loaded(space, hostile)
        if after is not None and (before := loaded(space, original)) is not None:
            assert after == before, hostile
            compared += 1
    assert compared == ENOUGH


def test_ip_takes_one_rule_or_route_of_each_line(space: Namespace) -> None:
    veth = "link add wan type veth peer name other"
    space.ip(veth, "link set wan up", "addr add 192.0.2.2/24 dev wan", "addr add 2001:db8:1::1/64 dev wan")
    count = 0
    for line in islice(texts("text-state", {"ip"}), ENOUGH):
        family, kind = "6" if ":" in line else "4", "rule" if line.startswith("priority") else "route"
        before = listed(space, family)
        space.run(["ip", f"-{family}", "-batch", "-"], input=f"{kind} add {line}\n", check=False)
        assert len(listed(space, family) - before) <= 1, line
        count += 1
    assert count == ENOUGH


def listed(space: Namespace, family: str) -> set[str]:
    commands = (("rule",), ("route", "show", "table", "all"))
    return {line for words in commands for line in space.run(["ip", f"-{family}", *words]).stdout.splitlines()}


@pytest.mark.parametrize("name", ["text-netconfig", "text-script"])
def test_sh_parses_each_script(name: str) -> None:
    scripts = list(islice(texts(name, {"sh", "script"}), ENOUGH))
    for script in scripts:
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), script
    assert scripts


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is missing")
def test_dnsmasq_takes_its_options(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from fuzz.hostile_text import draw_text
    from fuzz.written_text import policy
    from nftpolicy.generated_text import Unwritable
    from nftpolicy.runtime.resolver import dnsmasq

    monkeypatch.setattr(dnsmasq.accounts, "user_and_group", lambda _: (name, name))
    uplink, accepted = policy().uplink["wan"], 0
    assert uplink.resolver
    for number in range(60):
        name = draw_text(random.Random(number))
        job = dnsmasq.ResolverJob("wan", uplink, uplink.resolver, Path("/run/x"), print)
        try:
            options = dnsmasq.dnsmasq_arguments(job)
        except Unwritable:
            continue
        accepted += 1
        assert options.count(f"--user={name}") == 1
        done = space.run(["dnsmasq", "--test", *options], check=False)
        said = done.stderr.strip().splitlines()
        assert said[-1].endswith("syntax check OK.") or name in done.stderr, done.stderr
    assert accepted
