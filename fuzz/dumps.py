"""Targets on what `nft` and `ip` print: real listings of which parts were replaced, read, judged and walked through."""

import json
import tempfile
from functools import cache
from pathlib import Path

from attrs import evolve
from hypothesis import strategies as st

from nftpolicy.cli.common import Failure
from nftpolicy.cli.desk import desk_state
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, Packet, number
from nftpolicy.model.walk import Model
from nftpolicy.netstate import ip_json, json_in, json_out
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.claim import Claim, UplinkClaim
from nftpolicy.proof.promise import claim
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
POLICIES = sorted([*ROOT.glob("rulesets/*.toml"), *ROOT.glob("tests/golden/*/policy.toml")])
DEVICES = ("br-wan", "wan0", "eth0", "eth1", "br-client", "bat0", "lo")
IP_KEYS = (
    "priority",
    "not",
    "src",
    "srclen",
    "dst",
    "dstlen",
    "fwmark",
    "fwmask",
    "iif",
    "oif",
    "table",
    "action",
    "goto",
)
IP_KEYS += (
    "uid_start",
    "uid_end",
    "ipproto",
    "sport",
    "dport_start",
    "suppress_prefixlen",
    "protocol",
    "l3mdev",
    "tos",
)
IP_KEYS += (
    "type",
    "dev",
    "gateway",
    "via",
    "metric",
    "flags",
    "nexthops",
    "weight",
    "prefsrc",
    "from",
    "family",
    "host",
)
IP_VALUES = (
    "all",
    "default",
    "main",
    "local",
    "10.0.0.0",
    "10.0.0.0/8",
    "fe80::/10",
    "::",
    "inet6",
    "0x1",
    "unreachable",
)
WORDS = (
    "accept",
    "drop",
    "mark",
    "br-wan",
    "wan0",
    "tcp",
    "udp",
    "==",
    "!=",
    "in",
    "daddr",
    "saddr",
    "10.0.0.1",
    "::1",
)
WORDS += (
    "output",
    "postrouting",
    "filter",
    "nat",
    "established",
    "reply",
    "oifname",
    "iifname",
    "skuid",
    "inet",
    "ip6",
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(IP_VALUES + IP_KEYS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(IP_KEYS), inner, max_size=3),
    max_leaves=8,
)
ODD = ({"frobnicate": {"key": "mark"}}, {"xt": {"type": "target", "name": "MARK"}})
ODD_MATCH = {"match": {"op": "==", "left": {"frobnicate": {"key": "mark"}}, "right": 5}}


@cache
def dump(file):
    return json.loads((FIXTURES / file).read_text())


@st.composite
def replaced(draw, document, values=VALUES, times=2):
    """A document of which some parts are another thing, are gone, or are there twice."""
    for _ in range(draw(st.integers(1, times))):
        document = _replaced(draw, document, values, 0)
    return document


def seldom(draw, times):
    """True once in so many times."""
    return draw(st.sampled_from(range(times))) == times - 1


def _replaced(draw, item, values, depth):
    if not item or not isinstance(item, dict | list) or seldom(draw, 100 if depth < 2 else 10):
        if isinstance(item, str) and draw(st.booleans()):
            return draw(st.sampled_from(WORDS))
        if isinstance(item, int) and draw(st.booleans()):
            return draw(st.sampled_from((0, 1, item + 1, 53, 255, 2**32 - 1, -1)))
        return draw(values)
    keys = sorted(item) if isinstance(item, dict) else list(range(len(item)))
    chosen = draw(st.sampled_from(keys))
    what = draw(st.sampled_from(range(10))) if depth else 9
    if isinstance(item, dict):
        if what == 0:
            return {key: value for key, value in item.items() if key != chosen}
        if what == 1:
            return {**item, draw(st.sampled_from(IP_KEYS) | st.text(max_size=5)): draw(values)}
        return {**item, chosen: _replaced(draw, item[chosen], values, depth + 1)}
    if what == 0:
        return [*item[:chosen], *item[chosen + 1 :]]
    if what == 1:
        return [*item[: chosen + 1], *item[chosen:]]
    return [*item[:chosen], _replaced(draw, item[chosen], values, depth + 1), *item[chosen + 1 :]]


def _ip_files(what):
    return sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob(f"*/ip?-{what}.json"))


def ip_documents():
    """(what, document): rules or routes as ip prints them, changed; or anything."""
    things = st.lists(st.dictionaries(st.sampled_from(IP_KEYS), VALUES, max_size=6), max_size=3) | VALUES
    loose = st.tuples(st.sampled_from(("rule", "route")), things)
    files = [(what, file) for what in ("rule", "route") for file in _ip_files(what)]
    real = st.sampled_from(files).flatmap(lambda pair: st.tuples(st.just(pair[0]), replaced(dump(pair[1]))))
    return st.one_of(loose, real, real)


def ip_listing(pair):
    """Rules and routes are read, or they are none."""
    what, document = pair
    for family in (None, 4, 6):
        try:
            found = {"rule": ip_json.rules, "route": ip_json.routes}[what](document, family)
        except ValueError:
            continue
        assert all(one.family in (4, 6) for one in found)


# --- states --------------------------------------------------------------------------------


@st.composite
def machines(draw):
    """A whole machine's listings, of which some parts are changed: nft's, ip's rules, ip's routes."""
    name = draw(st.sampled_from(("default-router", "gluon-node", "ip4table")))
    listing = dump(f"{name}/kernel.json") if (FIXTURES / name / "kernel.json").exists() else {"nftables": []}
    if draw(st.booleans()):
        listing = {"nftables": [*listing["nftables"], *listed(draw(st.sampled_from(POLICIES)))]}
    if draw(st.booleans()):
        listing = draw(replaced(listing, times=4))
    parts = {
        f"ip{family}-{what}": dump(f"{name}/ip{family}-{what}.json") for family in (4, 6) for what in ("rule", "route")
    }
    for key, document in parts.items():
        if seldom(draw, 6):
            parts[key] = draw(replaced(document))
    return listing, parts


def compiled(path):
    return compile_policy(policy_of(path))


@cache
def listed(path):
    """A compiled policy as the objects that nft lists."""
    return [one["add"] for one in json_out.ruleset(compiled(path).tables)["nftables"] if "add" in one]


@cache
def policy_of(path):
    return load(path.read_bytes(), str(path))[0]


def state_of(listings):
    """The state that the listings tell of; None if they are none."""
    listing, parts = listings
    try:
        return NetState(
            json_in.ruleset(listing),
            tuple(one for family in (4, 6) for one in ip_json.rules(parts[f"ip{family}-rule"], family)),
            tuple(one for family in (4, 6) for one in ip_json.routes(parts[f"ip{family}-route"], family)),
        )
    except ValueError:
        return None


def packets():
    for family, to in ((4, "198.51.100.9"), (6, "2001:db8:9::9"), (6, "fe80::9"), (4, "255.255.255.255")):
        yield Packet(family, number(to), uid=65534, gid=65534)
        yield Packet(family, number(to), mark=1, gid=800)
        yield Packet(family, number(to), bound="br-wan", origin=KERNEL)
        yield Packet(
            family, number(to), number("192.0.2.9" if family == 4 else "2001:db8::9"), origin=FORWARD, iif="br-client"
        )
        yield Packet(family, number(to), origin=FRAME, bound="wan0")


def judged(listings):
    """Whatever a kernel lists is judged without a traceback, and what walks out unmarked is not said to stay."""
    state = state_of(listings)
    if state is None:
        return
    uplinks = tuple(UplinkClaim(name, (name,), 1, 1) for name in ("br-wan", "wan0"))
    for wanted in (Claim(uplinks), claim(policy_of(POLICIES[0]))):
        proof = prove(state, wanted)
        model = Model(state)
        for packet in packets():
            walk = model.walk(packet)
            if packet.mark or packet.iif in ("br-wan", "wan0") or walk.outcome != "leaves":
                continue
            named = [one for one in wanted.uplinks if walk.device in one.devices and not one.holes]
            for one in named:
                verdicts = [
                    found.verdict for found in proof.findings if (found.property, found.uplink) == ("P1", one.name)
                ]
                assert set(verdicts) != {PROVED}, (packet, walk)


def at_a_desk(listings):
    """The same from files: a state, or one line about what is wrong."""
    listing, parts = listings
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for key, document in {"nft": listing, **parts}.items():
            files[key] = Path(folder) / key
            files[key].write_text(json.dumps(document))
        try:
            desk_state(
                files["nft"],
                [f"{family}:{files[f'ip{family}-rule']}" for family in (4, 6)],
                [str(files[f"ip{family}-route"]) for family in (4, 6)],
            )
        except Failure as error:
            assert "\n" not in str(error), error


# --- what is not understood ------------------------------------------------------------------


@st.composite
def odd_rules(draw):
    """Part of a rule of a compiled policy is what nobody knows: (file, the rule's place, the part's place, what)."""
    path = draw(st.sampled_from(POLICIES))
    listing = listed(path)
    places = [
        (at, which)
        for at, one in enumerate(listing)
        if "rule" in one
        for which in range(len(one["rule"]["expr"]))
    ]  # fmt: skip
    at, which = draw(st.sampled_from(places))
    is_match = "match" in listing[at]["rule"]["expr"][which]
    return path, at, which, draw(st.sampled_from([*ODD, *([ODD_MATCH] * 2 if is_match else [])]))


def odd(case):
    """A proof does not rest on what it doesn't understand."""
    path, at, which, what = case
    policy, state = policy_of(path), compiled(path)
    listing = listed(path)
    expr = listing[at]["rule"]["expr"]

    def verdict(*instead):
        rule = {**listing[at]["rule"], "expr": [*expr[:which], *instead, *expr[which + 1 :]]}
        changed = [*listing[:at], {"rule": rule}, *listing[at + 1 :]]
        tables = json_in.ruleset({"nftables": changed})
        return prove(evolve(state, tables=tables), claim(policy)).verdict

    said = verdict(what)
    if what in ODD:
        assert said != PROVED, (expr, which)
    elif said == PROVED:  # then it must not matter whether it matches
        assert verdict() == PROVED, (expr, which)
        tables = json_in.ruleset({"nftables": [*listing[:at], *listing[at + 1 :]]})
        assert prove(evolve(state, tables=tables), claim(policy)).verdict == PROVED, (expr, which)
