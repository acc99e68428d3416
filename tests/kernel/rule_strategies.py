"""Hypothesis strategies for rules that nft accepts, over the fields in which the probes differ."""

import os
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Binary,
    Bitwise,
    Chain,
    Concat,
    Counter,
    Ct,
    Hook,
    Lookup,
    Mangle,
    Map,
    MapRef,
    Match,
    Meta,
    Notrack,
    Option,
    Payload,
    Reject,
    Rule,
    Set,
    SetRef,
    Table,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)

from .probe_senders import BEYOND, DESTINATIONS, FAR, NOBODY, NODE, OWN, SELF

EXAMPLES = int(os.environ.get("CHAINS_EXAMPLES", "60"))
RULESETS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # A disagreement is reported with its one packet; shrinking the rules takes minutes.
    phases=[Phase.generate, Phase.shrink] if os.environ.get("CHAINS_SHRINK") else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)

MARK, FLOW_MARK = Meta("mark"), Ct("mark")
MARKS = (0, 1, 2, 3, 5, 0x10, 0x12)
CHAINS = ("first", "second", "third")
PLACES = (
    ("output", -360), ("output", -300), ("output", -150), ("output", 0), ("postrouting", 0), ("postrouting", 200),
    ("prerouting", -360), ("prerouting", -300), ("prerouting", -100), ("forward", 0), ("input", 0),
    ("egress", 0), ("ingress", 0),
)  # fmt: skip

# For each expression: values of which no two have anything in common, so that any of them make a set.
_DEVICES = ("w0", "w1", "lo", "l*o", "far0", "x")
# No two wildcards are neighbours in byte order: nft 1.0.6 makes one range of them and aborts on its listing.
_WIDE_DEVICES = ("w*", "lo", "z*")
_PORTS = (9, "20-30", 53, 80, "4000-5000", 5353, "20000-20103", "20200-20500", 7777)
_MARK_RANGES = (0, 1, "2-4", 5, "16-17", 18)
_IDS = (0, 5, 7, 100, "500-2000", 65534)
_ADDRESSES = {
    4: (NODE[4], "192.0.2.64/28", "198.51.100.0/24", FAR[4], "127.0.0.1-127.0.0.9", "10.0.0.0/8"),
    6: (NODE[6], NOBODY[6], "2001:db8:2::/48", FAR[6], "2001:db8:9::1-2001:db8:9::5", "::1", "fe80::/10"),
}
_EXACT = {
    4: (NODE[4], NOBODY[4], FAR[4], OWN[4], SELF[4], BEYOND[4]),
    6: (NODE[6], NOBODY[6], FAR[6], OWN[6], SELF[6], BEYOND[6]),
}
_STATES = ("new", "established", "related", "invalid", "untracked")


class Scope(NamedTuple):
    """Subject of one rule. The hooks of a device (`is_link`) have no connection tracking."""

    family: int | None
    protocol: str | None
    is_link: bool


def _plain(scope):
    """Return (expression, its type, values) for the fields that a rule about a family and a protocol may match."""
    family, protocol = scope.family, scope.protocol
    found = [
        (MARK, "mark", _MARK_RANGES),
        (Meta("skuid"), "uid", _IDS),
        (Meta("skgid"), "gid", _IDS),
        (Meta("iifname"), "ifname", _DEVICES),
        (Meta("oifname"), "ifname", _DEVICES),
        (Meta("pkttype"), "pkt_type", ("host", "broadcast", "multicast", "other")),
    ]
    if not scope.is_link:
        found += [
            (FLOW_MARK, "mark", _MARK_RANGES),
            (Ct("state"), "ct_state", _STATES),
            (Ct("direction"), "ct_dir", ("original", "reply")),
        ]
    if protocol is None:
        found.append((Meta("l4proto"), "inet_proto", ("tcp", "udp", "icmp", "ipv6-icmp", "sctp", "gre", 136)))
    if not family:  # nft 1.0.6 leaves out of its listing what contradicts the header that comes next
        found.append((Meta("protocol"), "ether_type", ("ip", "ip6", "arp")))
    if family:
        of = "ip" if family == 4 else "ip6"
        kind = "ipv4_addr" if family == 4 else "ipv6_addr"
        found += [(Payload(of, name), kind, _ADDRESSES[family]) for name in ("saddr", "daddr")]
        found.append((Payload(of, "dscp"), "dscp", (0, "cs1", "ef")))
        found.append((Payload(of, "ttl" if family == 4 else "hoplimit"), None, (64, "1-5", 255)))
    if protocol in ("tcp", "udp", "sctp", "udplite"):
        found += [(Payload(protocol, name), "inet_service", _PORTS) for name in ("sport", "dport")] * 2
    if protocol in ("icmp", "icmpv6"):
        types = ("echo-request", 42, 200, "destination-unreachable")
        found.append((Payload(protocol, "type"), f"{protocol}_type", types))
        found.append((Payload(protocol, "code"), f"{protocol}_code", (200, 201)))
    return found


@st.composite
def _scopes(draw, of):
    """Return a family and a protocol that nft accepts together."""
    families = {"ip": [None, 4], "ip6": [None, 6]}.get(of, [None, 4, 6])
    family = draw(st.sampled_from(families))
    protocols = [None, "tcp", "udp", "sctp", "udplite"]
    protocols += ["icmp"] if family == 4 and of != "ip6" else ["icmpv6"] if family == 6 and of != "ip" else []
    return Scope(family, draw(st.sampled_from(protocols)), of == "netdev")


@st.composite
def _matches(draw, scope, sets):
    left, kind, values = draw(st.sampled_from(_plain(scope)))
    kinds = ["one", "one", "set", "named", "special"]
    which = draw(st.sampled_from(kinds))
    if which == "named":
        fitting = [one for one in sets if one.type == (kind,)]
        if fitting:
            return Match(left, SetRef(draw(st.sampled_from(fitting)).name), draw(st.sampled_from(("==", "!="))))
    if which == "set":
        some = values if left not in (Meta("iifname"), Meta("oifname")) or draw(st.booleans()) else _WIDE_DEVICES
        chosen = draw(st.sets(st.sampled_from(some), min_size=1))
        return Match(left, AnonymousSet(frozenset(chosen)), draw(st.sampled_from(("==", "!="))))
    if which == "special":
        return draw(_special(scope))
    value = draw(st.sampled_from(values))
    if left in (Meta("iifname"), Meta("oifname")):
        value = draw(st.sampled_from((*_DEVICES, *_WIDE_DEVICES)))
    operators = ["==", "!="]
    if left == Ct("state"):
        operators = ["in", "!", "!=", "=="]
        if draw(st.booleans()):
            value = ",".join(sorted(draw(st.sets(st.sampled_from(_STATES), min_size=2, max_size=3))))
            operators = ["in", "!"]
    elif isinstance(value, int) and kind in ("mark", "uid", "gid", "inet_service"):
        operators += ["<", ">", "<=", ">="]
    return Match(left, value, draw(st.sampled_from(operators)))


def _special(scope):
    """Return matches with a shape of their own."""
    family, protocol = scope.family, scope.protocol
    masks = st.sampled_from((1, 2, 3, 0x10, 0x13, 0xFFFFFFF0))
    marks = st.sampled_from((MARK,) if scope.is_link else (MARK, FLOW_MARK))
    signs = st.sampled_from(("==", "!="))
    found = [
        st.builds(lambda of, mask, value, op: Match(Bitwise(of, and_mask=mask), value & mask, op), marks, masks,
                  st.sampled_from(MARKS), signs),
        st.builds(lambda of, mask, values: Match(Bitwise(of, and_mask=mask), AnonymousSet(frozenset(v & mask for v in values))),
                  marks, masks, st.sets(st.sampled_from(MARKS), min_size=1)),
        st.builds(Match, st.just(Payload("th", "dport")), st.sampled_from(_PORTS), signs),
        st.builds(Match, st.sampled_from((Meta("iif"), Meta("oif"))), st.sampled_from(("w0", "lo")), signs),
    ]  # fmt: skip
    if protocol == "tcp":
        flags = Payload("tcp", "flags")
        found += [
            st.builds(lambda mask, value: Match(Bitwise(flags, and_mask=mask), value),
                      st.sampled_from(("ack,fin,rst,syn", "fin,syn")), st.sampled_from(("syn", 0))),
            st.builds(Match, st.just(flags), st.sampled_from(("syn", "ack,syn", "rst")), st.sampled_from(("in", "!", "=="))),
            st.builds(Match, st.just(flags), st.sampled_from(("syn", "rst")), st.just("&")),
        ]  # fmt: skip
    if family:
        of, mask, value = {4: ("ip", "0.0.0.255", "0.0.0.77"), 6: ("ip6", "::ffff", "::77")}[family]
        found.append(st.just(Match(Bitwise(Payload(of, "daddr"), and_mask=mask), value)))
        found.append(_concats(scope))
    if protocol is None:
        found.append(_concats(scope))
    return st.one_of(found)


def _parts(scope):
    """Return the expressions that may stand in a concatenation, with exact values."""
    family, protocol = scope.family, scope.protocol
    found = [
        (MARK, MARKS),
        (Meta("skuid"), (0, 7, 1000)),
        (Meta("oifname"), ("w0", "lo")),
        (Meta("iifname"), ("w0", "lo")),
    ]
    if protocol is None:
        found.append((Meta("l4proto"), ("tcp", "udp", "sctp")))
    if family:
        of = "ip" if family == 4 else "ip6"
        found += [(Payload(of, name), _EXACT[family]) for name in ("saddr", "daddr")]
    if protocol in ("tcp", "udp", "sctp", "udplite"):
        found.append((Payload(protocol, "dport"), (9, 22, 53, 80)))
    return found


@st.composite
def _concat_keys(draw, scope):
    parts = draw(st.lists(st.sampled_from(_parts(scope)), min_size=2, max_size=3, unique_by=lambda part: part[0]))
    elements = st.tuples(*(st.sampled_from(values) for _, values in parts))
    return Concat(tuple(of for of, _ in parts)), elements


@st.composite
def _concats(draw, scope):
    key, elements = draw(_concat_keys(scope))
    chosen = draw(st.sets(elements, min_size=1, max_size=5))
    return Match(key, AnonymousSet(frozenset(chosen)), draw(st.sampled_from(("==", "!="))))


def _values(scope):
    """Return the values that may be written into a mark."""
    marks = st.sampled_from((MARK,) if scope.is_link else (MARK, FLOW_MARK))
    small = st.sampled_from(MARKS)
    found = [
        small,
        marks,
        st.builds(lambda of, keep, put: Bitwise(of, keep, put), marks, st.sampled_from((0, 1, 0xF0, 0xFFFFFFFE)), small),
        st.builds(lambda of, put: Bitwise(of, or_bits=put or 1), marks, small),
        st.builds(Binary, st.just("^"), marks, st.sampled_from((1, 3))),
        st.builds(Binary, st.sampled_from(("<<", ">>")), marks, st.sampled_from((1, 4))),
        st.builds(lambda some: Lookup(Meta("skuid"), frozenset(some.items())),
                  st.dictionaries(st.sampled_from((0, 7, 1000, 65534)), small, min_size=1)),
        st.just(Lookup(Meta("skgid"), MapRef("marks"))),
    ]  # fmt: skip
    if scope.protocol in ("tcp", "udp", "sctp"):
        found.append(st.builds(lambda some: Lookup(Payload(scope.protocol, "dport"), frozenset(some.items())),
                               st.dictionaries(st.sampled_from(_PORTS), small, min_size=1)))  # fmt: skip
    return st.one_of(found)


def _verdicts(at):
    """Return verdicts of the chain with this index; calls go to later chains only."""
    later = CHAINS[at + 1 :]
    plain = [st.sampled_from((ACCEPT, DROP, Verdict("return"), Verdict("continue")))]
    calls = [st.builds(Verdict, st.sampled_from(("jump", "goto")), st.sampled_from(later))] * 2 if later else []
    return st.one_of(plain + calls)


@st.composite
def _ends(draw, at, scope, hook, of):
    """Return the last statement of a rule."""
    kinds = ["nothing", "verdict", "verdict", "mangle", "mangle", "vmap", "vmaps"]
    kinds += ["header"] if scope.family else []
    kinds += ["option"] if scope.protocol in (None, "tcp") else []
    kinds += ["notrack"] if hook in ("output", "prerouting") and of != "netdev" else []
    kinds += ["reject"] if hook in ("input", "forward", "output") else []
    match draw(st.sampled_from(kinds)):
        case "nothing":
            return ()
        case "verdict":
            return (draw(_verdicts(at)),)
        case "mangle":
            key = draw(st.sampled_from((MARK, MARK, MARK if of == "netdev" else FLOW_MARK)))
            first = Mangle(key, draw(_values(scope)))
            return (first, draw(_verdicts(at))) if draw(st.booleans()) else (first,)
        case "header":  # which later rules read
            network, hops = ("ip", "ttl") if scope.family == 4 else ("ip6", "hoplimit")
            name, value = draw(st.sampled_from((("dscp", "cs1"), ("dscp", "ef"), (hops, 64), (hops, 5), (hops, 255))))
            return Mangle(Payload(network, name), value), draw(_verdicts(at))
        case "option":  # ends the rule for packets without a TCP header
            return Mangle(Option("tcp option", "maxseg", "size"), draw(st.sampled_from((100, 1360)))), draw(
                _verdicts(at)
            )
        case "notrack":
            return (Notrack(),)
        case "reject":
            choices = [Reject()] if of == "inet" else [Reject("icmp" if of == "ip" else "icmpv6", "port-unreachable")]
            if of == "inet":
                replies = {4: Reject("icmp", "admin-prohibited"), 6: Reject("icmpv6", "no-route")}
                choices += [reply for family, reply in replies.items() if scope.family in (None, family)]
            return (draw(st.sampled_from(choices)),)
        case "vmaps":
            return (VerdictMapRef(Meta("oifname"), "ways"),) if at == 0 else ()
    if draw(st.booleans()):
        key, elements = draw(_concat_keys(scope))
    else:
        key, _, values = draw(st.sampled_from([one for one in _plain(scope) if one[0] != Ct("state")]))
        elements = st.sampled_from(values)
    entries = draw(st.dictionaries(elements, _verdicts(at), min_size=1, max_size=4))
    return (VerdictMap(key, frozenset(entries.items())),)


@st.composite
def tables(draw):
    """Return a table with one base chain whose rules have a counter each."""
    hook, priority = draw(st.sampled_from(PLACES))
    of = "netdev" if hook in ("egress", "ingress") else draw(st.sampled_from(("inet", "inet", "ip", "ip6")))
    sets = _named(draw)
    number = 0
    chains = []
    for at, name in enumerate(CHAINS):
        rules = []
        for _ in range(draw(st.integers(1, 6 if at == 0 else 3))):
            scope = draw(_scopes(of))
            matches = draw(st.lists(_matches(scope, sets), max_size=2))
            end = draw(_ends(at, scope, hook, of))
            number += 1
            if any(isinstance(one, VerdictMap | VerdictMapRef) for one in end):
                rules.append(Rule((*matches, *end)))  # a packet may come to its end and find nothing
            else:
                last = end[-1:] if end and isinstance(end[-1], Verdict | Reject) else ()
                rules.append(Rule((*matches, *end[: len(end) - len(last)], Counter(), *last), f"r{number}"))
        chains.append(Chain(name, tuple(rules)))
    device = "w0" if of == "netdev" else None
    policy = draw(st.sampled_from(("accept", "accept", "drop")))
    base = Chain("base", _gate(of, policy), Hook("filter", hook, priority, policy, device))
    ways = draw(st.dictionaries(st.sampled_from(("lo", "w*", "x")), _verdicts(0), min_size=1))
    marks = draw(st.dictionaries(st.sampled_from((0, 5, "50-200")), st.sampled_from(MARKS), min_size=1))
    maps = (
        Map("ways", ("ifname",), ("verdict",), frozenset(ways.items()), frozenset({"interval"})),
        Map("marks", ("gid",), ("mark",), frozenset(marks.items()), frozenset({"interval"})),
    )
    # A chain is there before one that calls it.
    return Table(of, "probed", (*reversed(chains), base), sets, maps=maps)


def _gate(of, policy):
    """Return a rule that skips all packets except the probes."""
    found = [
        Rule((Match(Payload(name, "daddr"), AnonymousSet(frozenset(DESTINATIONS[family]))), Verdict("jump", "first")))
        for name, family in (("ip", 4), ("ip6", 6))
        if of in ("inet", "netdev", name)
    ]
    return tuple(found)


def _named(draw):
    made = []
    for kind, values in {
        "mark": _MARK_RANGES,
        "uid": _IDS,
        "ifname": _WIDE_DEVICES,
        "inet_service": _PORTS,
        "ipv4_addr": _ADDRESSES[4],
        "ipv6_addr": _ADDRESSES[6],
    }.items():
        chosen = draw(st.sets(st.sampled_from(values)))
        made.append(Set(f"some-{kind}", (kind,), frozenset(chosen), frozenset({"interval"})))
    return tuple(made)
