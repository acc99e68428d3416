"""Hypothesis strategies: small rulesets, and for each a universe of packets that misses none of its cases.

A ruleset tests only some groups of fields, and only against the few values below. Of every set of values
that no such test tells apart the universe has one. So what no packet of the universe does, no packet does.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from attrs import frozen
from hypothesis import strategies as st

from nftpolicy.model.box import Ranges, ranges
from nftpolicy.model.packet import number
from nftpolicy.model.view import View
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import AnonymousSet, Bitwise, Chain, Concat, Ct, Hook, Mangle, Match, Meta, Payload, Rule
from nftpolicy.proof.claim import MarkTest, Region

DEVICES = ("wan", "lan0", "lan1", "lan2", "eth9")  # rules name the first three, and lan*
HOSTS = {
    4: ("10.0.0.1", "10.0.0.2", "10.0.0.7", "192.0.2.1"),
    6: ("fd00::1", "fd00::2", "fd00::7", "2001:db8::1"),
}
_NETS = {4: "10.0.0.0/24", 6: "fd00::/64"}
_PORTS, _PORT_CASES = (53, 80), (1, 53, 60, 80, 1000)
_UIDS, _GID_CASES = (0, 1000), (0, 500, 1000, 2000)
_UID_CASES = (0, 500, 501, 1000, 2000, 2001)  # rules may write the lowest bit into a mark
MARKS = range(8)  # rules test the two low bits, and whole marks up to 3
_IP = {4: "ip", 6: "ip6"}
_STATES = ("new", "established", "related", "invalid", "untracked")
_TCP_SYN, _TCP_ACK = 2, 16
GROUPS = ("ports", "icmp", "flags", "flow", "saddr", "daddr", "skuid", "skgid", "oif", "iif", "fib")


# --- universes -------------------------------------------------------------------------


@frozen
class _Says:
    """What every fib expression answers."""

    type: str

    def __call__(self, result: str, keys: tuple[str, ...], view: View) -> str:
        return self.type


@frozen
class Universe:
    """Packets of one family as a hook sees them: all combinations of the cases of each group."""

    family: int
    groups: tuple[str, ...]
    marks: range = MARKS
    hook: str = "postrouting"

    def views(self) -> Iterator[View]:
        """Every packet, freshly made."""
        for choice in product(*(self._cases(group) for group in ("mark", *self.groups))):
            merged: dict = {}
            fields: dict = {}
            for one in choice:
                fields |= one.get("fields", {})
                merged |= one
            yield self._view(merged | {"fields": fields})

    def _view(self, changes: dict) -> View:
        hosts, type_ = HOSTS[self.family], changes.pop("type", None)
        view = View(self.family, number(hosts[0]), number(hosts[3]), 17, 40000, 9, uid=0, gid=0, oif="wan")
        for name, value in changes.items():
            setattr(view, name, value)
        if view.uid is None:
            view.gid = None
        if type_ is not None:
            view.fib = _Says(type_)
        return view

    def _cases(self, group: str) -> list[dict]:
        hosts = [number(one) for one in HOSTS[self.family]]
        icmp = 1 if self.family == 4 else 58
        frag = {("ip", "frag-off"): 1}
        match group:
            case "mark":
                return [{"mark": mark} for mark in self.marks]
            case "ports":
                found = [{"protocol": of, "dport": port} for of in (6, 17) for port in _PORT_CASES]
                later = [{"protocol": of, "dport": 53, "fields": frag} for of in (6, 17)]
                return [*found, *later, {"protocol": 132, "dport": 53}]
            case "flow":
                tracked = [
                    {"ct_state": state, "ct_mark": mark, "ct_direction": way}
                    for state in _STATES[:3]
                    for mark in range(4)
                    for way in ("original", "reply")
                ]
                return [*tracked, *({"ct_state": state} for state in _STATES[3:])]
            case "saddr":
                return [{"source": one} for one in hosts]
            case "daddr":
                return [{"destination": one} for one in hosts]
            case "skuid":
                return [*({"uid": uid} for uid in _UID_CASES), {"uid": None}]
            case "skgid":
                return [*({"gid": gid} for gid in _GID_CASES), {"uid": None}]
            case "oif":  # a device's own hook is asked for that device
                return [{"oif": name} for name in (("wan",) if self.hook == "egress" else (None, *DEVICES))]
            case "iif":
                return [{"iif": name} for name in (None, *(() if self.hook == "output" else DEVICES))]
            case "icmp":
                kinds = [
                    {"protocol": icmp, "fields": {(_ICMP[self.family], "type"): kind}} for kind in (0, 5, 8, 128, 129)
                ]
                hops = ("ip", "ttl") if self.family == 4 else ("ip6", "hoplimit")
                return [
                    {**one, "fields": {**one.get("fields", {}), hops: ttl}}
                    for one in (*kinds, {"protocol": 17})
                    for ttl in (0, 1, 64, 255)
                ]
            case "flags":
                values = (0, _TCP_SYN, _TCP_ACK, _TCP_SYN | _TCP_ACK)
                return [*({"protocol": 6, "fields": {("tcp", "flags"): one}} for one in values), {"protocol": 17}]
            case "fib":
                return [{"type": one} for one in ("local", "unicast", "multicast")]
        raise ValueError(group)

    @property
    def region(self) -> dict[str, Ranges]:
        """The fields that rules need where they read others, as far as the universe has them."""
        some = {"ports": (6, 17, 132), "icmp": (1 if self.family == 4 else 58, 17), "flags": (6, 17)}
        found = {"protocol": ranges((one, one) for group in self.groups for one in some.get(group, ()))}
        if not found["protocol"]:
            del found["protocol"]
        if "ports" not in self.groups:
            found["fragment"] = ((0, 0),)
        return found


_ICMP = {4: "icmp", 6: "icmpv6"}


# --- matches ---------------------------------------------------------------------------


@st.composite
def _number(draw, values: Sequence[int], top: bool = True):
    """One value, a range or a set of them, with a fitting operator."""
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
        return Match(Bitwise(key, keep=mask), right, op)
    right, op = draw(_number(range(4)))
    return Match(key, right, op)


def _words(expression, words: Sequence, several: bool = True):
    """A match of words that have no order."""
    one = st.sampled_from(words)
    sets = st.sets(one, min_size=1, max_size=2).map(lambda some: AnonymousSet(frozenset(some)))
    return st.builds(lambda right, op: Match(expression, right, op), one | sets if several else one, _equal)


def _address(family: int, name: str):
    hosts = HOSTS[family]
    one = st.sampled_from((hosts[0], hosts[1], _NETS[family], f"{hosts[0]}-{hosts[1]}"))
    right = one | st.just(AnonymousSet(frozenset(hosts[:2])))
    return st.builds(lambda value, op: Match(Payload(_IP[family], name), value, op), right, _equal)


@st.composite
def _port(draw):
    """nft writes the match of the protocol before th itself, and leaves it out before tcp."""
    right, op = draw(_number(_PORTS))
    if draw(st.booleans()):
        return (Match(Payload(draw(st.sampled_from(("tcp", "udp"))), "dport"), right, op),)
    return Match(Meta("l4proto"), AnonymousSet(frozenset(("tcp", "udp")))), Match(Payload("th", "dport"), right, op)


@st.composite
def _concat(draw, groups: Sequence[str], family: int):
    """Two fields looked up together."""
    parts = {
        "ports": (Payload("udp", "dport"), _PORTS),
        "daddr": (Payload(_IP[family], "daddr"), HOSTS[family][:2]),
    }
    parts |= {"skuid": (Meta("skuid"), _UIDS), "oif": (Meta("oifname"), ("wan", "lan*", "lan0"))}
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
            _words(Ct("state"), _STATES).map(_alone),
            st.sampled_from(("original", "reply")).map(lambda way: (Match(Ct("direction"), way),)),
            _mark_match(Ct("mark")).map(_alone),
        ),
        "saddr": lambda: _address(family, "saddr").map(_alone),
        "daddr": lambda: _address(family, "daddr").map(_alone),
        "skuid": lambda: _number(_UIDS).map(lambda told: (Match(Meta("skuid"), *told),)),
        "skgid": lambda: _number(_UIDS).map(lambda told: (Match(Meta("skgid"), *told),)),
        "oif": lambda: _device("oif"),
        "iif": lambda: _device("iif"),
        "icmp": lambda: st.one_of(
            _words(Payload(_ICMP[family], "type"), ("echo-request", "echo-reply")).map(_alone),
            _number((1, 255)).map(
                lambda told: (Match(Payload(_IP[family], "ttl" if family == 4 else "hoplimit"), *told),)
            ),
        ),
        "flags": lambda: st.sampled_from(
            (
                (Match(Payload("tcp", "flags"), "syn", "in"),),
                (Match(Payload("tcp", "flags"), "syn", "!"),),
                (Match(Bitwise(Payload("tcp", "flags"), keep="ack,syn"), "syn"),),
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
    """What rulesets are made of: groups of fields, whether marks are written, whether there are unknown things."""

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
        "skuid": (Meta("skuid"), _UIDS),
        "daddr": (Payload(_IP[style.family], "daddr"), (*HOSTS[style.family][:2], _NETS[style.family])),
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
    """A write of a mark, the packet's or the flow's."""
    mark, flow = Meta("mark"), Ct("mark")
    values = [
        *range(4),
        Bitwise(mark, nft.FULL, draw(st.sampled_from((1, 2)))),
        Bitwise(mark, nft.FULL ^ draw(st.sampled_from((1, 2, 3)))),
        Bitwise(mark, nft.FULL ^ 1, 1),
        Bitwise(mark, 2, 1),
        nft.Binary("^", mark, 1),
        nft.Lookup(mark, frozenset({(0, 2), (2, 1)})),
    ]
    if "flow" in style.groups:
        values += [flow, Bitwise(flow, nft.FULL ^ 1), Bitwise(flow, 2)]
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
    """A table with base chains at `hooks`, and up to three chains that they call."""
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
        family or draw(st.sampled_from(("inet", _IP[style.family]))),
        name,
        (*bases, *parts),
        tuple(one for one in named.values() if isinstance(one, nft.Set)),
        (nft.NamedCounter("counted"),),
        maps=tuple(one for one in named.values() if isinstance(one, nft.Map)),
        objects=(nft.Named("slow", nft.Limit(10, "second")),),
    )


# --- questions --------------------------------------------------------------------------


UNMARKED = MarkTest(1, 1, equal=False)


@frozen
class Question:
    """Does a packet of `region` pass all chains at `hook`, and is in no region of `allowed`?"""

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
        "daddr": {"daddr": ((number(HOSTS[universe.family][0]),) * 2,)},
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
_LOW = tuple(MarkTest(0, nft.FULL ^ 3, of=of) for of in ("ctmark", "mark"))


# Hooks, and the priorities of the chains of each table there.
_TWO = ((("one", (0,)),), (("one", (0,)), ("two", (10,))), (("one", (0, 10)),))
_EARLY = ((("one", (-300, 0)),), (("one", (0,)),), (("one", (-300,)), ("two", (-150,))))  # before tracking, and behind


@st.composite
def questions(draw, unknown: bool = False, writes: bool = False):
    """A ruleset of one or two tables with chains at one hook, and a question about it."""
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
        arrived=("",) if hook == "output" else None,
    )
    return Question(universe, tuple(found), start, draw(_regions(universe, 2)), hook, device)
