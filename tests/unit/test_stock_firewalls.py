# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts beside the rules of common firewalls, as nft 1.0.6 listed them.

The rules of kube-proxy and Tailscale are commands of our own after theirs, loaded by iptables-nft;
tests/fixtures/stock/README.md tells what each file is.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_json_decode
from nftpolicy.netstate.formats.nft_json_expressions import canonical_json
from nftpolicy.netstate.formats.xt_decode import decode_xt
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED, UNKNOWN, Proof
from nftpolicy.runtime.published_ports import published_ports
from tests.finding_invariants import assert_findings_are_sound

ROOT = Path(__file__).parents[2]
DUMPS = {path.stem: path for path in sorted((ROOT / "tests" / "fixtures" / "stock").glob("*.json"))}
POLICY = load((ROOT / "rulesets" / "vpn-killswitch.toml").read_bytes())[0]
STATE = compile_policy(POLICY)
WRITES_MARKS = {"kube-proxy", "netavark", "tailscale"}  # by a target whose value a listing of nft does not have


def tables_of(name: str) -> tuple[nft.Table, ...]:
    return nft_json_decode.decode_ruleset(json.loads(DUMPS[name].read_text()))


def proof_beside(tables: tuple[nft.Table, ...]) -> Proof:
    spec = build_spec(POLICY)
    proof = prove(evolve(STATE, tables=(*STATE.tables, *tables)), spec)
    assert_findings_are_sound(proof, spec)
    return proof


def statements(name: str) -> Iterator[nft.Statement]:
    for table in tables_of(name):
        for chain in table.chains:
            for rule in chain.rules:
                yield from rule.statements


@pytest.fixture(scope="module")
def proofs() -> dict[str, Proof]:
    return {name: proof_beside(tables_of(name)) for name in DUMPS}


@pytest.mark.parametrize("name", sorted(DUMPS.keys() - WRITES_MARKS))
def test_safety_beside_stock_rules_is_proved(name: str, proofs: dict[str, Proof]) -> None:
    assert [proofs[name].property_verdict(each) for each in ("P1", "P2")] == [PROVED, PROVED]


@pytest.mark.parametrize("name", sorted(WRITES_MARKS))
def test_unreadable_mark_write_is_the_reason_of_unknown(name: str, proofs: dict[str, Proof]) -> None:
    unknown = [finding for finding in proofs[name].findings if finding.verdict == UNKNOWN]
    assert {"P1", "P2"} <= {finding.property for finding in unknown}
    assert all(
        any('"name":"MARK"' in text for text in finding.unsupported)
        for finding in unknown
        if finding.property in ("P1", "P2") and "leave by" in finding.subject
    )


@pytest.mark.parametrize("name", DUMPS)
def test_only_a_true_statement_is_refuted(name: str, proofs: dict[str, Proof]) -> None:
    """Refute DNS of services in IPv6 beside firewalld, and nothing else.

    firewalld rejects ::/96 in the output hook by its destination; ::1 of the resolver is in it.
    """
    refuted = {
        (finding.property, finding.subject, example.packet.family, example.trace.outcome)
        for finding in proofs[name].findings
        if finding.verdict == REFUTED
        for example in finding.examples
    }
    expected = {("P4", "DNS for service vpn", 6, "dropped"), ("P3", "DNS for service vpn", 6, "dropped")}
    assert refuted == (expected if name == "firewalld" else set())


@pytest.mark.parametrize("name", DUMPS)
def test_unknown_verdict_names_its_constructs(name: str, proofs: dict[str, Proof]) -> None:
    for finding in proofs[name].findings:
        assert finding.verdict != UNKNOWN or finding.unsupported or finding.subject.startswith("DNS queries")


@pytest.mark.parametrize("name", DUMPS)
def test_stock_rules_have_no_unknown_statement_but_mark(name: str) -> None:
    unknown = {statement.raw for statement in statements(name) if isinstance(statement, nft.UnknownStatement)}
    assert unknown <= {canonical_json({"xt": {"type": "target", "name": "MARK"}})}
    assert bool(unknown) == (name in WRITES_MARKS)


@pytest.mark.parametrize("name", ["docker", "netavark"])
def test_published_ports_of_containers_are_read(name: str) -> None:
    for table in tables_of(name):
        ports = {str(each.port) for each in published_ports([table])}
        assert ports == ({"tcp/8080", "tcp/8081", "tcp/8082"} if table.name == "nat" else set())


ANONYMOUS_CHAIN = "jump {\n\t\t\tip saddr 192.0.2.0/24 drop\n\t\t\taccept\n\t\t}"
SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
BY_MAP = {"map": {"key": SADDR, "data": {"set": [["192.0.2.1", "name"]]}}}
NUMGEN = {"numgen": {"mode": "inc", "mod": 2, "offset": 0}}
FIB = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}
SUPPORTED = {
    "fib": {"match": {"op": "==", "left": FIB, "right": False}},
    "numgen": {"match": {"op": "==", "left": NUMGEN, "right": 0}},
    "numgen map": {"vmap": {"key": NUMGEN, "data": {"set": [[0, {"accept": None}], [1, {"drop": None}]]}}},
    "jhash": {"match": {"op": "==", "left": {"jhash": {"mod": 2, "expr": SADDR}}, "right": 0}},
    "symhash": {"match": {"op": "==", "left": {"symhash": {"mod": 2}}, "right": 0}},
    "tproxy": {"tproxy": {"port": 5000}},
    "meter": {"meter": {"key": SADDR, "name": "m", "size": 9, "stmt": {"limit": {"rate": 9, "per": "second"}}}},
    "helper by map": {"ct helper": BY_MAP},
    "limit by map": {"limit": BY_MAP},
    "quota by map": {"quota": BY_MAP},
    "counter by map": {"counter": BY_MAP},
    "synproxy": {"synproxy": {"mss": 1460, "wscale": 7, "flags": ["timestamp", "sack-perm"]}},
    "named synproxy": {"synproxy": "name"},
    "synproxy by map": {"synproxy": BY_MAP},
    "last": {"last": None},
    "anonymous chain": ANONYMOUS_CHAIN,
    "xt match": {"xt": {"type": "match", "name": "recent"}},
    "xt target": {"xt": {"type": "target", "name": "TCPMSS"}},
}
WRITING = {
    "mark": {"mangle": {"key": {"meta": {"key": "mark"}}, "value": NUMGEN}},
    "anonymous chain": "jump {\n\t\t\tmeta mark set 0x1110\n\t\t}",
    "xt target": {"xt": {"type": "target", "name": "CONNMARK"}},
    "queue": {"queue": {"num": 5}},
}


def foreign_table(hooks: tuple[str, ...], *statements: object) -> tuple[nft.Table, ...]:
    """Return a table with one rule at each hook."""
    items: list[dict[str, object]] = [{"table": {"family": "inet", "name": "t"}}]
    for hook in hooks:
        location = {"family": "inet", "table": "t"}
        chain = {"name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": "accept"}
        items += [{"chain": {**location, **chain}}, {"rule": {**location, "chain": hook, "expr": statements}}]
    return nft_json_decode.decode_ruleset({"nftables": items})


@pytest.mark.parametrize("name", SUPPORTED)
def test_safety_beside_supported_statement_is_proved(name: str) -> None:
    proof = proof_beside(foreign_table(("prerouting", "postrouting"), SUPPORTED[name], {"accept": None}))
    assert [proof.property_verdict(each) for each in ("P1", "P2")] == [PROVED, PROVED]


@pytest.mark.parametrize("name", sorted(SUPPORTED.keys() - {"xt target", "last"}))
def test_supported_test_before_a_drop_refutes_nothing(name: str) -> None:
    """Leave P3 unknown where a test with an unknown result decides if the packet is dropped."""
    proof = proof_beside(foreign_table(("output",), SUPPORTED[name], {"drop": None}))
    assert REFUTED not in {finding.verdict for finding in proof.findings}


@pytest.mark.parametrize("name", WRITING)
def test_statement_that_may_write_a_mark_is_unknown(name: str) -> None:
    proof = proof_beside(foreign_table(("prerouting",), WRITING[name]))
    assert proof.property_verdict("P1") == UNKNOWN


@pytest.mark.parametrize(
    ("expression", "types"),
    [
        (SADDR, ("value",)),
        ({"meta": {"key": "oifname"}}, ("ifname",)),
        ({"concat": [{"meta": {"key": "iifname"}}, {"meta": {"key": "l4proto"}}]}, ("ifname", "inet_proto")),
    ],
)
def test_set_with_typeof_has_the_types_of_its_expression(expression: object, types: tuple[str, ...]) -> None:
    elements = [{"concat": ["eth0", 17]}] if len(types) > 1 else ["eth0"]
    body = {"family": "inet", "table": "t", "name": "s", "type": {"typeof": expression}, "elem": elements}
    table = {"table": {"family": "inet", "name": "t"}}
    (decoded,) = nft_json_decode.decode_ruleset({"nftables": [table, {"set": body}]})
    assert (decoded.unknown, decoded.sets[0].type) == ((), types)
    assert decoded.sets[0].elements == {("eth0", "udp") if len(types) > 1 else "eth0"}
    data = {**body, "map": {"typeof": SADDR}, "elem": [[elements[0], "192.0.2.1"]]}
    (decoded,) = nft_json_decode.decode_ruleset({"nftables": [table, {"map": data}]})
    assert (decoded.unknown, decoded.maps[0].type, decoded.maps[0].data) == ((), types, ("value",))


def test_drop_of_routing_headers_stops_no_service() -> None:
    """ufw has the rule in each chain for IPv6; its type is not modelled, but no usual packet has the header."""
    recorded = json.loads((ROOT / "tests" / "fixtures" / "xt_iptables.json").read_text())
    expression = next(each["expressions"][0] for each in recorded if each["expressions"][0]["name"] == "rt")
    info = bytes.fromhex(expression["info"])
    rule = nft.Rule((*decode_xt("match", "rt", expression["revision"], info, "ip6", "little"), nft.DROP))
    chains = [
        nft.Chain(name, (rule,), nft.Hook("filter", hook, 0)) for name, hook in [("in", "input"), ("out", "output")]
    ]
    proof = proof_beside((nft.Table("ip6", "filter", tuple(chains)),))
    assert {each: proof.property_verdict(each) for each in ("P1", "P2", "P3", "P4", "P5")} == dict.fromkeys(
        ("P1", "P2", "P3", "P4", "P5"), PROVED
    )
