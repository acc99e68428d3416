"""Proof of a policy beside a foreign firewall that accepts nothing."""

from pathlib import Path

from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import ACCEPT, DROP, AnonymousSet, Chain, Ct, Fib, Hook, Match, Meta, Rule, Table
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED

POLICY = load((Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml").read_bytes())[0]


OF_LO = Rule((Match(Meta("iifname"), "lo"), ACCEPT))
OF_FLOWS = Rule((Match(Ct("state"), AnonymousSet(frozenset({"established", "related"}))), ACCEPT))


def state_with_firewall(hook: str, priority: int, *accepting: Rule) -> NetState:
    rules = (OF_LO, *accepting, Rule((DROP,)))
    state = compile_policy(POLICY)
    others = Table("inet", "fw4", (Chain("in", rules, Hook("filter", hook, priority)),))
    return evolve(state, tables=(*state.tables, others))


def unproved(state: NetState) -> set[tuple[str, str]]:
    proof = prove(state, build_spec(POLICY))
    return {(one.property, one.subject) for one in proof.findings if one.verdict != PROVED}


def test_foreign_input_firewall_leaves_policy_proved() -> None:
    """Drop after the mark is set, which leaves every key of the policy effective."""
    assert prove(state_with_firewall("input", 0, OF_FLOWS), build_spec(POLICY)).verdict == PROVED


def test_foreign_firewall_that_drops_replies_is_found() -> None:
    assert unproved(state_with_firewall("input", 0)) == {("P3", "service fastd: replies arrive")}


def test_reverse_path_filter_is_found_and_named() -> None:
    """The route to the client in table main leads inside; with the mark, the way back is the uplink."""
    for keys, is_found in ((("saddr", "iif"), True), (("saddr", "mark", "iif"), False)):
        drop = Rule((Match(Fib("oif", keys), "missing"), DROP))
        chain = Chain("rp", (drop,), Hook("filter", "prerouting", -140))
        state = compile_policy(POLICY)
        state = evolve(state, tables=(*state.tables, Table("inet", "foreign", (chain,))))
        assert unproved(state) == ({("P3", "service fastd: replies arrive")} if is_found else set())
        named = [text for text in prove(state, build_spec(POLICY)).assumptions if "have another way back" in text]
        assert [text.endswith("oif missing drop (table inet foreign, chain rp)") for text in named] == [True] * is_found


def test_reverse_path_filter_needs_a_request_to_drop_replies() -> None:
    """Without a route to the server, in a kernel, no request leaves; neighbours are asked and reply."""
    drop = Rule((Match(Fib("oif", ("saddr", "mark", "iif")), "missing"), DROP))
    foreign = Table("inet", "foreign", (Chain("rp", (drop,), Hook("filter", "prerouting", -140)),))
    spec = build_spec(POLICY)
    full = add_assumed_environment(compile_policy(POLICY), spec)[0]
    connected = Route(6, 1, "2001:db8:77::/64", device="br-wan", protocol=2)
    for of_wan in ((), (connected,)):
        kept = [route for route in full.routes if (route.table, route.device) != (1, "br-wan") or route.family == 4]
        devices = tuple(Device(name, up=True) for name in ("br-wan", "bat0"))
        state = evolve(full, tables=(*full.tables, foreign), routes=(*kept, *of_wan), devices=devices)
        found = {(each.property, each.subject) for each in prove(state, spec).findings if each.verdict != PROVED}
        assert ("P3", "service fastd: replies arrive") not in found


def test_sysctl_that_drops_replies_is_found() -> None:
    """Strict rp_filter finds the way back by the mark (src_valid_mark), and without the mark another one."""
    state = compile_policy(POLICY)
    strict = {"net/ipv4/conf/all/rp_filter": "1"}
    for values, is_found in ((strict, False), (strict | {"net/ipv4/conf/all/src_valid_mark": "0"}, True)):
        sysctls = tuple(evolve(each, value=values.get(each.path, each.value)) for each in state.sysctls)
        found = unproved(evolve(state, sysctls=sysctls))
        assert (("P3", "service fastd: replies arrive") in found) == is_found
        assert bool(found) == is_found


def test_foreign_firewall_before_the_mark_is_found() -> None:
    found = unproved(state_with_firewall("prerouting", -300))
    subjects = {
        "arriving packets are marked",
        "DHCP replies to the client on a bridge",
        "service fastd: replies arrive",
    }
    assert found == {("P3", subject) for subject in subjects}


def test_drop_in_own_chain_is_refuted() -> None:
    """Drop everything in `wan.arrival`, after which nothing can be answered."""
    state = compile_policy(POLICY)
    table = state.tables[0]
    chains = tuple(
        evolve(one, rules=tuple(evolve(rule, statements=rule.statements[-2:]) for rule in one.rules[:1]))
        if one.name == "wan.arrival"
        else one
        for one in table.chains
    )
    broken = evolve(state, tables=(evolve(table, chains=chains), *state.tables[1:]))
    assert prove(broken, build_spec(POLICY)).verdict != PROVED
