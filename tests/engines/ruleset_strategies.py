"""Hypothesis strategies for small rulesets, and for questions about them."""

from collections.abc import Sequence

from attrs import frozen
from hypothesis import strategies as st

from nftpolicy.model.packet import parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import AnonymousSet, Bitwise, Chain, Concat, Ct, Hook, Mangle, Match, Meta, Payload, Rule
from nftpolicy.proof.spec import MarkTest, Region

from .equivalence_classes import GROUPS, HOSTS, ICMP, IP, MARKS, NETS, PORTS, STATES, UIDS, Universe

# --- matches ---------------------------------------------------------------------------


@st.composite
def _number(draw, values: Sequence[int], top: bool = True):
    """Generate one value, a range or a set of values, with a fitting operator."""
    kind = draw(st.sampled_from(("one", "one", "range", "set", "order") if top else ("one", "one", "set")))
    if kind == "range":
        low, high = sorted(draw(st.lists(st.sampled_from(values), min_size=2, max_size=2)))
        return f"{low}-{high}", draw(_equal)
    if kind == "set":
        some = draw(st.sets(st.sampled_from(values), min_size=1, max_size=3))
        return AnonymousSet(frozenset(some)), draw(_equal)
    if kind == "order":
        return draw(st.sampled_from(values)), draw(st.sampled_from(("<", "<=", ">", ">=")))
    return draw(st.sampled_from(values)), draw(_equal)


_equal = st.sampled_from(("==", "==", "!="))


@st.composite
def _mark_match(draw, key=Meta("mark")):  # a value, never changed
    if draw(st.booleans()):
        mask = draw(st.sampled_from((1, 2, 3)))
        right, op = draw(_number(range(4), top=False))
        return Match(Bitwise(key, and_mask=mask), right, op)
    right, op = draw(_number(range(4)))
    return Match(key, right, op)


def _words(expression, words: Sequence, several: bool = True):
    """Generate a match of words without order."""
    one = st.sampled_from(words)
    sets = st.sets(one, min_size=1, max_size=2).map(lambda some: AnonymousSet(frozenset(some)))
    return st.builds(lambda right, op: Match(expression, right, op), one | sets if several else one, _equal)


def _address(family: int, name: str):
    hosts = HOSTS[family]
    one = st.sampled_from((hosts[0], hosts[1], NETS[family], f"{hosts[0]}-{hosts[1]}"))
    right = one | st.just(AnonymousSet(frozenset(hosts[:2])))
    return st.builds(lambda value, op: Match(Payload(IP[family], name), value, op), right, _equal)


@st.composite
def _port(draw):
    """nft writes the match of the protocol before th itself, and leaves it out before tcp."""
    right, op = draw(_number(PORTS))
    if draw(st.booleans()):
        return (Match(Payload(draw(st.sampled_from(("tcp", "udp"))), "dport"), right, op),)
    return Match(Meta("l4proto"), AnonymousSet(frozenset(("tcp", "udp")))), Match(Payload("th", "dport"), right, op)


@st.composite
def _concat(draw, groups: Sequence[str], family: int):
    """Generate a lookup of two fields together."""
    parts = {
        "ports": (Payload("udp", "dport"), PORTS),
        "daddr": (Payload(IP[family], "daddr"), HOSTS[family][:2]),
    }
    parts |= {"skuid": (Meta("skuid"), UIDS), "oif": (Meta("oifname"), ("wan", "lan*", "lan0"))}
    columns = [parts[group] for group in groups if group in parts][:2]
    columns = columns if len(columns) == 2 else [*columns, (Meta("mark"), range(4))]
    if len(columns) < 2:
        return None
    elements = st.tuples(*(st.sampled_from(values) for _, values in columns))
    some = frozenset(draw(st.sets(elements, min_size=1, max_size=3)))
    return Concat(tuple(of for of, _ in columns)), some


def _of_group(group: str, family: int):
    """Matches on the fields of a group, as tuples."""
    one = {
        "ports": lambda: _port() | _words(Meta("l4proto"), ("tcp", "udp")).map(_alone),
        "flow": lambda: st.one_of(
            _words(Ct("state"), STATES).map(_alone),
            st.sampled_from(("original", "reply")).map(lambda way: (Match(Ct("direction"), way),)),
            _mark_match(Ct("mark")).map(_alone),
        ),
        "saddr": lambda: _address(family, "saddr").map(_alone),
        "daddr": lambda: _address(family, "daddr").map(_alone),
        "skuid": lambda: _number(UIDS).map(lambda told: (Match(Meta("skuid"), *told),)),
        "skgid": lambda: _number(UIDS).map(lambda told: (Match(Meta("skgid"), *told),)),
        "oif": lambda: _device("oif"),
        "iif": lambda: _device("iif"),
        "icmp": lambda: st.one_of(
            _words(Payload(ICMP[family], "type"), ("echo-request", "echo-reply")).map(_alone),
            _number((1, 255)).map(
                lambda told: (Match(Payload(IP[family], "ttl" if family == 4 else "hoplimit"), *told),)
            ),
        ),
        "flags": lambda: st.sampled_from(
            (
                (Match(Payload("tcp", "flags"), "syn", "in"),),
                (Match(Payload("tcp", "flags"), "syn", "!"),),
                (Match(Bitwise(Payload("tcp", "flags"), and_mask="ack,syn"), "syn"),),
                (Match(Payload("tcp", "flags"), "ack,syn", "&"),),
            )
        ),
        "fib": lambda: _words(nft.Fib("type", ("daddr",)), ("local", "unicast")).map(_alone),
    }
    return one[group]()


def _device(key: str):
    named = _words(Meta(f"{key}name"), ("wan", "lan0", "lan1", "lan*"))
    return (named | _words(Meta(key), ("wan", "lan0"))).map(_alone)


def _alone(match: Match) -> tuple[Match]:
    return (match,)


# What this project does not model, or what depends on more than the packet.
_UNKNOWN_MATCHES = (
    Match(nft.UnknownExpression('{"osf": {}}'), "Linux"),
    Match(Meta("rtclassid"), 7),
    Match(Meta("mark"), nft.SetRef("changing")),
    nft.Limit(10, "second"),
    nft.Quota(10, over=True),
    nft.ObjectRef("limit", "slow"),
    nft.SetUpdate("add", "changing", Meta("mark")),
)
_UNKNOWN_STATEMENTS = (nft.UnknownStatement('{"xt": {"type": "target", "name": "TEE"}}'), nft.Queue(1))
_QUIET = (nft.Counter(), nft.CounterRef("counted"), nft.Log())


# --- rules and chains -------------------------------------------------------------------


@frozen
class Style:
    """Parts of rulesets: groups of fields, writes of marks, unsupported constructs."""

    groups: tuple[str, ...]
    family: int
    writes: bool = False
    unknown: bool = False
    most_rules: int = 5


@st.composite
def _matches(draw, style: Style, named: dict):
    chosen = draw(st.lists(st.sampled_from(("mark", *style.groups)), max_size=2))
    found: list = []
    for group in chosen:
        found += (draw(_mark_match()),) if group == "mark" else draw(_of_group(group, style.family))
    if draw(st.integers(0, 5)) == 0:
        told = draw(_concat(style.groups, style.family))
        if told is not None:
            right = AnonymousSet(told[1])
            if draw(st.booleans()):
                right = nft.SetRef(f"set{len(named)}")
                types = tuple("ifname" if part == Meta("oifname") else "mark" for part in told[0].parts)
                named[right.name] = nft.Set(right.name, types, told[1])
            found.append(Match(told[0], right, draw(_equal)))
    if draw(st.integers(0, 9)) == 0:
        found.append(Match(Meta("nfproto"), draw(st.sampled_from(("ipv4", "ipv6"))), draw(_equal)))
    if style.unknown and draw(st.integers(0, 4)) == 0:
        found.append(draw(st.sampled_from(_UNKNOWN_MATCHES)))
    return tuple(found)


def verdicts(targets: Sequence[str]):
    """Ends of a rule, with jumps to chains that exist."""
    plain = [nft.ACCEPT, nft.DROP, nft.Verdict("return"), nft.Verdict("continue")]
    return st.sampled_from(
        [*plain[:2], *plain[:3], *(nft.Verdict(kind, to) for to in targets for kind in ("jump", "jump", "goto"))]
    )


@st.composite
def _verdict_map(draw, style: Style, targets: Sequence[str], named: dict):
    keys = {
        "mark": (Meta("mark"), (0, 1, 2, "2-3")),
        "ports": (Meta("l4proto"), ("tcp", "udp")),
        "oif": (Meta("oifname"), ("wan", "lan*", "lan0")),
        "flow": (Ct("state"), ("new", "established", "invalid")),
        "skuid": (Meta("skuid"), UIDS),
        "daddr": (Payload(IP[style.family], "daddr"), (*HOSTS[style.family][:2], NETS[style.family])),
    }
    key, values = draw(st.sampled_from([keys[one] for one in ("mark", *style.groups) if one in keys]))
    some = draw(st.lists(st.sampled_from(_disjoint(draw, values)), min_size=1, max_size=2, unique=True))
    ends = verdicts(targets) | st.just(nft.Verdict("continue"))
    entries = frozenset((value, draw(ends)) for value in some)
    if draw(st.integers(0, 2)):
        return nft.VerdictMap(key, entries)
    name = f"map{len(named)}"
    named[name] = nft.Map(name, ("mark",), ("verdict",), entries)
    return nft.VerdictMapRef(key, name)


def _disjoint(draw, values: Sequence) -> list:
    """nft lets no element overlap another."""
    wide = [one for one in values if isinstance(one, str) and ("*" in one or "/" in one or "-" in one)]
    narrow = [one for one in values if one not in wide]
    if not wide or draw(st.booleans()):
        return narrow
    return [*wide, *(one for one in narrow if one in (0, 1, "wan"))]


@st.composite
def _write(draw, style: Style):
    """Generate a write of the packet's or the flow's mark."""
    mark, flow = Meta("mark"), Ct("mark")
    values = [
        *range(4),
        Bitwise(mark, nft.FULL_MASK, draw(st.sampled_from((1, 2)))),
        Bitwise(mark, nft.FULL_MASK ^ draw(st.sampled_from((1, 2, 3)))),
        Bitwise(mark, nft.FULL_MASK ^ 1, 1),
        Bitwise(mark, 2, 1),
        nft.Binary("^", mark, 1),
        nft.Lookup(mark, frozenset({(0, 2), (2, 1)})),
    ]
    if "flow" in style.groups:
        values += [flow, Bitwise(flow, nft.FULL_MASK ^ 1), Bitwise(flow, 2)]
    if "skuid" in style.groups:
        values.append(Bitwise(Meta("skuid"), 1))
    value = draw(st.sampled_from(values))
    key = draw(st.sampled_from((mark, mark, flow))) if "flow" in style.groups else mark
    return Mangle(key, value)


@st.composite
def _rule(draw, style: Style, targets: Sequence[str], named: dict):
    statements = list(draw(_matches(style, named)))
    if draw(st.integers(0, 4)) == 0:
        statements.append(draw(st.sampled_from((*_QUIET, nft.Notrack()) if "flow" in style.groups else _QUIET)))
    if style.unknown and draw(st.integers(0, 9)) == 0:
        statements.append(draw(st.sampled_from(_UNKNOWN_STATEMENTS)))
    if style.writes and draw(st.booleans()):
        statements.append(draw(_write(style)))
        if draw(st.integers(0, 3)) == 0:
            statements += draw(_matches(style, named))
        if draw(st.booleans()):
            return Rule(tuple(statements))
    if draw(st.integers(0, 4)) == 0:
        statements.append(draw(_verdict_map(style, targets, named)))
        if draw(st.integers(0, 2)):
            return Rule(tuple(statements))
    if draw(st.integers(0, 7)) == 0:
        statements.append(
            nft.Reject(*draw(st.sampled_from((("icmpx", "port-unreachable"), ("icmp", "net-unreachable")))))
        )
    else:
        statements.append(draw(verdicts(targets)))
    return Rule(tuple(statements))


@st.composite
def tables(draw, style: Style, hooks: Sequence[Hook], name: str = "own", family: str | None = None):
    """Generate a table with base chains at `hooks`, and up to three chains that they call."""
    called = [f"part{at}" for at in range(draw(st.integers(0, 3)))]
    named: dict = {"changing": nft.Set("changing", ("mark",), frozenset({1}), frozenset({"dynamic"}))}

    def chain(title: str, targets: Sequence[str], hook: Hook | None) -> Chain:
        rules = draw(st.lists(_rule(style, targets, named), max_size=style.most_rules))
        if targets and draw(st.booleans()):
            rules.insert(0, Rule((nft.Verdict("jump", targets[0]),)))
        if draw(st.integers(0, 2)) == 0:
            rules.append(Rule((draw(st.sampled_from((nft.ACCEPT, nft.DROP, nft.DROP))),)))
        return Chain(title, tuple(rules), hook)

    # A chain calls only those behind it: nft refuses loops.
    parts = [chain(title, called[at + 1 :], None) for at, title in enumerate(called)]
    bases = [chain(f"{hook.hook}{at}", called, hook) for at, hook in enumerate(hooks)]
    return nft.Table(
        family or draw(st.sampled_from(("inet", IP[style.family]))),
        name,
        (*bases, *parts),
        tuple(one for one in named.values() if isinstance(one, nft.Set)),
        (nft.NamedCounter("counted"),),
        maps=tuple(one for one in named.values() if isinstance(one, nft.Map)),
        objects=(nft.NamedObject("slow", nft.Limit(10, "second")),),
    )


# --- questions --------------------------------------------------------------------------


UNMARKED = MarkTest(1, 1, equal=False)


@frozen
class Question:
    """Question if a packet of `region` passes all chains at `hook` and is in no region of `allowed`."""

    universe: Universe
    tables: tuple[nft.Table, ...]
    region: Region
    allowed: tuple[Region, ...]
    hook: str
    device: str | None


@st.composite
def _regions(draw, universe: Universe, most: int) -> tuple[Region, ...]:
    narrow = {
        "ports": {"protocol": ((17, 17),), "fragment": ((0, 0),), "dport": ((53, 53),)},
        "flow": {"ct.state": ((1, 1),)},
        "skuid": {"socket": ((0, 0),)},
        "daddr": {"daddr": ((parse_address(HOSTS[universe.family][0]),) * 2,)},
    }
    found = []
    for _ in range(draw(st.integers(0, most))):
        some = draw(st.sets(st.sampled_from([one for one in ("mark", *universe.groups) if one in (*narrow, "mark")])))
        fields: dict = {}
        for group in some:
            fields |= narrow.get(group, {})
        tests = (MarkTest(*draw(st.sampled_from(((1, 1), (2, 2), (1, 3)))), draw(st.booleans())),)
        found.append(Region(fields, tests if "mark" in some else ()))
    return tuple(one for one in found if one.fields or one.marks)


# Fields of different protocols do not go together.
_groups = st.builds(
    lambda layer, others: (*layer, *others),
    st.sampled_from(((), ("ports",), ("ports",), ("icmp",), ("flags",))),
    st.lists(st.sampled_from(GROUPS[3:]), min_size=1, max_size=2, unique=True),
)
# All marks are told apart, or only the two low bits, with no other bit set.
_LOW = tuple(MarkTest(0, nft.FULL_MASK ^ 3, field=of) for of in ("ctmark", "mark"))


# Hooks, and the priorities of the chains of each table there.
_TWO = ((("one", (0,)),), (("one", (0,)), ("two", (10,))), (("one", (0, 10)),))
_EARLY = ((("one", (-300, 0)),), (("one", (0,)),), (("one", (-300,)), ("two", (-150,))))  # before tracking, and behind


@st.composite
def questions(draw, unknown: bool = False, writes: bool = False):
    """Generate a ruleset of one or two tables with chains at one hook, and a question about it."""
    hook = draw(st.sampled_from(("postrouting",) * 6 + ("output", "egress")))
    groups = draw(_groups)
    universe = Universe(draw(st.sampled_from((4, 4, 6))), groups, MARKS if len(groups) < 3 else range(4), hook)
    style = Style(groups, universe.family, writes, unknown)
    policy = st.sampled_from(("accept", "accept", "drop"))
    device = "wan" if hook == "egress" else None
    family = "netdev" if device else None
    found = [
        draw(tables(style, [Hook("filter", hook, at, draw(policy), device) for at in priorities], name, family))
        for name, priorities in draw(st.sampled_from(_EARLY if hook == "output" else _TWO))
    ]
    more = draw(_regions(universe, 1))
    low = _LOW[:1] if len(universe.marks) > 4 else _LOW
    marks = draw(st.sampled_from((low, (*low, UNMARKED))))
    start = Region(
        {**universe.region, **(more[0].fields if more else {})},
        (*marks, *(more[0].marks if more else ())),
        ("wan",) if device or "oif" not in groups or draw(st.booleans()) else None,
        iifname=("",) if hook == "output" else None,
    )
    return Question(universe, tuple(found), start, draw(_regions(universe, 2)), hook, device)
