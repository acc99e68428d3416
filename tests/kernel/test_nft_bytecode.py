"""The ruleset that the kernel executes, read by netlink: compared with nft's listing, and written back."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler import object_names
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.linux import Linux
from nftpolicy.kernel.netlink.nft_ruleset import read_tables
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.formats.nft_implied_tests import program_of
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY
from nftpolicy.policy.load import load as load_policy
from nftpolicy.policy.mark import Mark
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED
from nftpolicy.runtime.verify import GivenUplink, spec_of_uplinks
from tests.kernel.test_nft_round_trip import PLACES, SURROUNDINGS, rules
from tests.lab.netns import Namespace

pytestmark = pytest.mark.kernel

RULESETS = sorted((Path(__file__).parents[2] / "rulesets").glob("*.toml"))
# Rules with values that nft lists as symbols or in other units, and the lifted rule has as numbers; and
# headers that have no name without a test that is not in the rule.
NUMBERS = (
    "ct event", "meta iiftype", "meta priority", "meta rtclassid", "meta day", "meta hour",
    "meta time", "vlan id", "icmp code", "icmp type . icmp code", "icmpv6 code", "ip dscp", "ip ecn", "ip6 dscp", "frag",
    "@ll", "rt classid", "meta mark set ip dscp map", "ct original saddr", "ether type 8021q vlan", "ether daddr &",
)  # fmt: skip
UNSUPPORTED = ("dnat ip prefix", "snat ip prefix")  # NAT of networks


def load(text: str) -> None:
    error = Nft().load(text)
    assert error is None, error


def listed(family: str, name: str) -> nft.Table:
    """Return a table as nft lists it."""
    (table,) = nft_json_decode.decode_ruleset(Nft().list_json(f"list table {family} {name}"))
    return table


def chain_of(table: nft.Table, name: str) -> nft.Chain:
    return next(chain for chain in table.chains if chain.name == name)


# --- what nft lists ------------------------------------------------------------------------


def forms_table(place: str) -> nft.Table:
    family = {"ip": "ip", "netdev": "netdev"}.get(place.split()[0], "inet")
    around = SURROUNDINGS if family == "inet" else nft.Table(family, "t")
    hook = None if place == "filter" else PLACES[place]
    return evolve(around, chains=(*around.chains, nft.Chain("forms", rules(place), hook)))


def differences(place: str) -> list[tuple[str, str]]:
    """Return the rules whose program differs from their listing, both as text; runs in the namespace."""
    table = forms_table(place)
    load(nft_text.table_text(table))
    (executed,) = read_tables("t")
    pairs = zip(chain_of(listed(*table.key), "forms").rules, chain_of(executed, "forms").rules, strict=True)
    return [
        (nft_text.display_text(one), nft_text.display_text(other))
        for one, other in pairs
        if program_of(one, table.family) != program_of(other, table.family)
    ]


@pytest.mark.parametrize("place", PLACES)
def test_lifted_rule_equals_listed_rule(place: str) -> None:
    with Namespace("forms") as space:
        different = space.call(lambda: differences(place))
    assert [pair for pair in different if not pair[0].startswith((*NUMBERS, *UNSUPPORTED))] == []
    # Nothing of the others is lost or unsupported: no part is in angle brackets but a time of day.
    supported = [pair for pair in different if not pair[0].startswith((*UNSUPPORTED, "meta hour", "frag"))]
    assert [pair for pair in supported if "<" in pair[1].replace("<<", "").replace(" < ", "").replace("<=", "")] == []


def rewritten(place: str) -> list[tuple[str, str]]:
    """Return the lifted rules that are others after they were written as text and loaded again."""
    load(nft_text.table_text(forms_table(place)))
    (before,) = read_tables("t")
    chain, writable = chain_of(before, "forms"), []
    for rule in chain.rules:
        try:
            nft_text.rule_text(rule)
        except ValueError:  # without a form in nft's grammar
            continue
        writable.append(rule)
    table = forms_table(place)
    empty = evolve(table, chains=tuple(each for each in table.chains if each.name != "forms"))
    again = evolve(chain, rules=tuple(writable))
    load("flush ruleset\n" + nft_text.table_text(evolve(empty, chains=(*empty.chains, again))))
    (after,) = read_tables("t")
    pairs = list(zip(writable, chain_of(after, "forms").rules, strict=True))
    assert len(pairs) > 0.8 * len(chain.rules)
    return [(nft_text.display_text(one), nft_text.display_text(other)) for one, other in pairs if one != other]


@pytest.mark.parametrize("place", PLACES)
def test_lifted_rule_round_trips(place: str) -> None:
    with Namespace("forms") as space:
        different = space.call(lambda: rewritten(place))
    # nft adds a test of the device to a link address.
    assert [pair for pair in different if not pair[0].startswith("ether daddr")] == []


# --- what nft does not list -----------------------------------------------------------------


@pytest.fixture
def node():
    with Namespace("bytecode") as space:
        space.ip("link set lo up", "link add wan type veth peer name peer", "link set wan up")
        yield space


GUARD = """
table inet t {{
  set s {{ type inet_service
    {statement}
    elements = {{ 9{of_element} }}
  }}
  chain c {{ type filter hook postrouting priority 0; policy accept
    oifname != "wan" accept
    {test} accept
    meta mark & 1 == 1 accept
    drop
  }}
}}
table netdev e {{
  set s {{ type inet_service
    {statement}
    elements = {{ 9{of_element} }}
  }}
  chain x {{ type filter hook egress device "wan" priority 0; policy accept
    {link_test}
    meta mark & 1 == 1 accept
    drop
  }}
}}
"""
LIMIT = "limit rate over 1000/second burst 5 packets"


def verdict(test: str, link_test: str, statement: str = "", exempt: tuple[str, ...] = ()) -> str:
    load(
        GUARD.format(
            test=test, link_test=link_test, statement=statement, of_element=f" {statement}" if statement else ""
        )
    )
    spec = spec_of_uplinks([GivenUplink("wan", ("wan",), Mark(1, 1))], exempt)
    return prove(Linux().read_all(), spec, usability=False).verdict


@pytest.mark.parametrize(("protocol", "is_proved"), [("", True), ("meta l4proto ipv6-icmp ", False)])
def test_proof_sees_family_test_that_nft_hides(node: Namespace, protocol: str, is_proved: bool) -> None:
    test = f"{protocol}icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit }}"

    def outcome() -> tuple[str, nft.Rule]:
        judged = verdict(f"meta nfproto ipv6 drop\n{test}", f"meta protocol ip6 drop\n{test} accept")
        return judged, chain_of(listed("inet", "t"), "c").rules[2]

    judged, rule = node.call(outcome)
    types = nft.AnonymousSet(frozenset({"nd-router-solicit", "nd-neighbor-solicit"}))
    assert rule.statements[0] == nft.Match(nft.Payload("icmpv6", "type"), types), "inconclusive: the listing shows it"
    assert (judged == PROVED) == is_proved


@pytest.mark.parametrize(("statement", "is_proved"), [("", True), ("counter", True), (LIMIT, False)])
def test_proof_sees_statement_of_set_elements(node: Namespace, statement: str, is_proved: bool) -> None:
    drops = "udp dport @s drop\n udp dport 9"
    assert (node.call(lambda: verdict(drops, f"{drops} accept", statement)) == PROVED) == is_proved


FORGED = """
table netdev g {
  chain x { type filter hook egress device "lo" priority 0; policy accept
    meta mark 1 drop comment "x
\tchain x {
\t\ttype filter hook egress device "wan" priority 0;"
  }
}
"""


def hook_devices() -> list[str | None]:
    load(FORGED.replace('"wan"', "devices = { wan }"))
    return [chain.hook and chain.hook.device for table in Linux().read_all().tables for chain in table.chains]


def test_device_of_chain_is_not_from_comment(node: Namespace) -> None:
    assert node.call(hook_devices) == ["lo"]


# --- own tables ---------------------------------------------------------------------------------


def own_tables() -> tuple[nft.Table, ...]:
    return Linux().read_own(object_names.TABLE, object_names.FAMILIES, RTPROT_NFTPOLICY, ()).tables


def compiled(file: Path) -> tuple[nft.Table, ...]:
    return compile_policy(load_policy(file.read_bytes())[0]).tables


def as_read(tables: tuple[nft.Table, ...]) -> set[tuple[object, ...]]:
    """Return tables without the order of their objects."""
    return {
        (
            *table.key,
            frozenset(table.chains),
            frozenset(table.sets),
            frozenset(table.counters),
            table.unknown,
            table.flags,
        )
        for table in tables
    }


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_read_own_equals_compiled_tables(file: Path) -> None:
    tables = compiled(file)
    hooks = [chain.hook for table in tables for chain in table.chains if chain.hook]
    devices = sorted({device for hook in hooks for device in (hook.device, *hook.devices) if device})
    with Namespace("own") as space:
        space.ip(*(f"link add {device} type veth peer name peer{at}" for at, device in enumerate(devices)))
        space.nft("".join(map(nft_text.table_text, tables)))
        assert as_read(space.call(own_tables)) == as_read(tables)


TABLE = "inet nftpolicy"
ANSWER = "icmp type echo-reply counter name wan.answer.ping accept"


def test_read_own_shows_wider_rule_with_same_listing() -> None:
    tables = compiled(Path(__file__).parents[2] / "rulesets/gluon-fastd.toml")
    with Namespace("own") as space:
        space.ip("link add br-wan type veth peer name peer")
        space.nft("".join(map(nft_text.table_text, tables)))
        before = space.call(lambda: listed("inet", "nftpolicy"))
        numbered = space.run(["nft", "-a", "list", "chain", *TABLE.split(), "wan.answers"]).stdout
        (handle,) = (
            line.split()[-1] for line in numbered.splitlines() if line.strip().startswith("icmp type echo-reply")
        )
        space.nft(f"replace rule {TABLE} wan.answers handle {handle} meta l4proto icmp {ANSWER}")
        assert space.call(lambda: listed("inet", "nftpolicy")) == before, (
            "inconclusive: the listing shows the difference"
        )
        wider = space.call(own_tables)
    ((index, rule),) = [
        (index, new)
        for table, desired in zip(wider, tables, strict=True)
        for index, (new, old) in enumerate(
            (new, old)
            for chain in desired.chains
            for new, old in zip(chain_of(table, chain.name).rules, chain.rules, strict=True)
        )
        if new != old
    ]
    assert rule.statements[0] == nft.Match(nft.Meta("l4proto"), "icmp"), index
