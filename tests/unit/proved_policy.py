"""A policy with each kind of entry, its compiled state, and the state with one rule more."""

from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import (
    ACCEPT,
    Bitwise,
    Chain,
    Fib,
    Hook,
    Match,
    Meta,
    Payload,
    Rule,
    Table,
)
from nftpolicy.policy.load import load
from nftpolicy.proof.exemption_spec import EXEMPTIONS
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove_guard

TEXT = """\
name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["wan"]
mark = "0x1/0xff"
table = 7
exempt = [%s]
answer = ["ssh", "ping"]
[uplink.wan.resolver]
listen = ["192.0.2.54:54", "[::1]:54"]
servers = ["192.0.2.53"]
domains = { "corp.example" = ["192.0.2.53:5353"], "tls.example" = ["tls://192.0.2.53#dns.example"] }
user = 77
[uplink.lte]
devices = ["lte"]
mark = "0x2/0xff"
table = 8
[service.vpn]
uplink = "wan"
group = 800
marks = "itself"
to = ["198.51.100.0/24"]
ports = ["udp/10000-10010"]
[service.web]
uplink = "wan"
user = 900
marks = "itself"
[service.wg]
uplink = "lte"
kernel = true
sport = ["udp/51820"]
"""
EXEMPT = tuple(EXEMPTIONS)
POLICY = load((TEXT % ", ".join(f'"{name}"' for name in EXEMPT)).encode())[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
WAN, LTE = Match(Meta("oifname"), "wan"), Match(Meta("oifname"), "lte")
IPV4, IPV6 = Match(Meta("nfproto"), "ipv4"), Match(Meta("nfproto"), "ipv6")
# meta nfproto is NFPROTO_NETDEV in a table of family netdev.
AT_EGRESS = {IPV4: Match(Meta("protocol"), "ip"), IPV6: Match(Meta("protocol"), "ip6")}
MARKED = Match(Bitwise(Meta("mark"), and_mask=0xFF), 1)
OWN_SOURCE = Match(Fib("type", ("saddr", "oif")), "local")
UNMARKED = Match(Bitwise(Meta("mark"), and_mask=0xFF), 0)
FRAGMENT = Match(Bitwise(Payload("ip", "frag-off"), and_mask=0x1FFF), 0, "!=")


def udp(**ports):
    return tuple(Match(Payload("udp", name), value) for name, value in ports.items())


def with_first_rule(state, *matches, hooks=("postrouting", "egress"), devices=("wan",)):
    """Return the state with a rule that accepts at the start of the base chains of some hooks.

    It accepts no packet from an address of another device: another finding is about those.
    """
    own_source = (OWN_SOURCE,) if "postrouting" in hooks else ()
    rules = {"inet": Rule((*matches, *own_source, ACCEPT))}
    rules["netdev"] = Rule((*(AT_EGRESS.get(match, match) for match in matches), ACCEPT))
    tables = []
    for table in state.tables:
        rule = rules[table.family]
        chains = tuple(
            evolve(chain, rules=(rule, *chain.rules))
            if chain.hook is not None and chain.hook.hook in hooks and chain.hook.device in (None, *devices)
            else chain
            for chain in table.chains
        )
        tables.append(evolve(table, chains=chains))
    return evolve(state, tables=tuple(tables))


def guard_verdict(state, spec=SPEC, name=""):
    findings = prove_guard(state, spec).findings
    verdicts = {one.verdict for one in findings if one.deciding and one.property.startswith(name)}
    return next(verdict for verdict in ("refuted", "unknown", "proved") if verdict in verdicts)


def beside(*rules, hook="output", priority=-150, kind="route", maps=(), more=(), family="inet"):
    """Return the state beside a foreign table with one base chain."""
    chain = Chain("c", tuple(rules), Hook(kind, hook, priority))
    return evolve(STATE, tables=(*STATE.tables, Table(family, "foreign", (chain, *more), maps=maps)))


def sockets_of_wan(state):
    findings = prove_guard(state, SPEC).findings
    return next(one for one in findings if one.uplink == "wan" and one.subject.startswith("sockets: "))


def with_edited_rules(state, edit):
    """Return the state with each rule of its first table replaced by edit(chain name, statements); empty: removed."""
    inet, *others = state.tables
    chains = []
    for chain in inet.chains:
        edited = [(rule, edit(chain.name, rule.statements)) for rule in chain.rules]
        chains.append(evolve(chain, rules=tuple(evolve(rule, statements=each) for rule, each in edited if each)))
    return evolve(state, tables=(evolve(inet, chains=tuple(chains)), *others))


def without(statements, word):
    """Return the statements in whose text the word is not."""
    return tuple(each for each in statements if word not in str(each))
