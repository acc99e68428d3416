"""Fuzz targets for the output of `nft` and `ip`: mutated real listings are decoded, proved and traced."""

import json
import tempfile
from functools import cache
from pathlib import Path

from attrs import evolve
from hypothesis import strategies as st

from nftpolicy.cli.common import Failure
from nftpolicy.cli.state_files import state_from_files
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import FORWARD, FRAME, KERNEL, Packet, parse_address
from nftpolicy.model.trace import Model
from nftpolicy.netstate.formats import ip_json_decode, nft_json_decode, nft_json_encode
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec, UplinkSpec
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
UNSUPPORTED = ({"frobnicate": {"key": "mark"}}, {"xt": {"type": "target", "name": "MARK"}})
UNSUPPORTED_MATCH = {"match": {"op": "==", "left": {"frobnicate": {"key": "mark"}}, "right": 5}}


@cache
def load_fixture(file):
    return json.loads((FIXTURES / file).read_text())


@st.composite
def mutated(draw, document, values=VALUES, times=2):
    """Draw a document with some parts replaced, deleted or doubled."""
    for _ in range(draw(st.integers(1, times))):
        document = _replaced(draw, document, values, 0)
    return document


def draw_once_in(draw, times):
    """Draw True once in `times` draws."""
    return draw(st.sampled_from(range(times))) == times - 1


def _replaced(draw, item, values, depth):
    if not item or not isinstance(item, dict | list) or draw_once_in(draw, 100 if depth < 2 else 10):
        if isinstance(item, str) and draw(st.booleans()):
            return draw(st.sampled_from(WORDS))
        if isinstance(item, int) and draw(st.booleans()):
            return draw(st.sampled_from((0, 1, item + 1, 53, 255, 2**32 - 1, -1)))
        return draw(values)
    keys = sorted(item) if isinstance(item, dict) else list(range(len(item)))
    chosen = draw(st.sampled_from(keys))
    action = draw(st.sampled_from(range(10))) if depth else 9
    if isinstance(item, dict):
        if action == 0:
            return {key: value for key, value in item.items() if key != chosen}
        if action == 1:
            return {**item, draw(st.sampled_from(IP_KEYS) | st.text(max_size=5)): draw(values)}
        return {**item, chosen: _replaced(draw, item[chosen], values, depth + 1)}
    if action == 0:
        return [*item[:chosen], *item[chosen + 1 :]]
    if action == 1:
        return [*item[: chosen + 1], *item[chosen:]]
    return [*item[:chosen], _replaced(draw, item[chosen], values, depth + 1), *item[chosen + 1 :]]


def _ip_files(command):
    return sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob(f"*/ip?-{command}.json"))


def ip_documents():
    """Return a strategy of ("rule" or "route", document): mutated output of ip, or arbitrary JSON."""
    documents = st.lists(st.dictionaries(st.sampled_from(IP_KEYS), VALUES, max_size=6), max_size=3) | VALUES
    loose = st.tuples(st.sampled_from(("rule", "route")), documents)
    files = [(command, file) for command in ("rule", "route") for file in _ip_files(command)]
    real = st.sampled_from(files).flatmap(lambda pair: st.tuples(st.just(pair[0]), mutated(load_fixture(pair[1]))))
    return st.one_of(loose, real, real)


def check_ip_listing(pair):
    """Check that rules or routes are decoded, or refused by ValueError."""
    command, document = pair
    decode = {"rule": ip_json_decode.decode_rules, "route": ip_json_decode.decode_routes}[command]
    for family in (None, 4, 6):
        try:
            items = decode(document, family)
        except ValueError:
            continue
        assert all(item.family in (4, 6) for item in items)


# --- states --------------------------------------------------------------------------------


@st.composite
def host_listings(draw):
    """Draw the listings of a host, some mutated: (nft ruleset, {"ip4-rule": rules, ...})."""
    name = draw(st.sampled_from(("default-router", "gluon-node", "ip4table")))
    listing = load_fixture(f"{name}/kernel.json") if (FIXTURES / name / "kernel.json").exists() else {"nftables": []}
    if draw(st.booleans()):
        listing = {"nftables": [*listing["nftables"], *listed_objects(draw(st.sampled_from(POLICIES)))]}
    if draw(st.booleans()):
        listing = draw(mutated(listing, times=4))
    parts = {
        f"ip{family}-{command}": load_fixture(f"{name}/ip{family}-{command}.json")
        for family in (4, 6)
        for command in ("rule", "route")
    }
    for key, document in parts.items():
        if draw_once_in(draw, 6):
            parts[key] = draw(mutated(document))
    return listing, parts


def compile_file(path):
    return compile_policy(load_policy(path))


@cache
def listed_objects(path):
    """Return a compiled policy as the objects that nft lists."""
    commands = nft_json_encode.encode_ruleset(compile_file(path).tables)["nftables"]
    return [command["add"] for command in commands if "add" in command]


@cache
def load_policy(path):
    return load(path.read_bytes(), str(path))[0]


def decode_state(listings):
    """Return the state that the listings describe; None if they are invalid."""
    listing, parts = listings
    try:
        return NetState(
            nft_json_decode.decode_ruleset(listing),
            tuple(rule for family in (4, 6) for rule in ip_json_decode.decode_rules(parts[f"ip{family}-rule"], family)),
            tuple(
                route for family in (4, 6) for route in ip_json_decode.decode_routes(parts[f"ip{family}-route"], family)
            ),
        )
    except ValueError:
        return None


def packets():
    for family, to in ((4, "198.51.100.9"), (6, "2001:db8:9::9"), (6, "fe80::9"), (4, "255.255.255.255")):
        yield Packet(family, parse_address(to), uid=65534, gid=65534)
        yield Packet(family, parse_address(to), mark=1, gid=800)
        yield Packet(family, parse_address(to), bound="br-wan", origin=KERNEL)
        yield Packet(
            family,
            parse_address(to),
            parse_address("192.0.2.9" if family == 4 else "2001:db8::9"),
            origin=FORWARD,
            iif="br-client",
        )
        yield Packet(family, parse_address(to), origin=FRAME, bound="wan0")


def check_proof_of_listings(listings):
    """Check that a state is proved without a traceback, and that no traced leak contradicts the proof."""
    state = decode_state(listings)
    if state is None:
        return
    uplinks = tuple(UplinkSpec(name, (name,), 1, 1) for name in ("br-wan", "wan0"))
    for spec in (Spec(uplinks), build_spec(load_policy(POLICIES[0]))):
        proof = prove(state, spec)
        model = Model(state)
        for packet in packets():
            trace = model.trace(packet)
            if packet.mark or packet.iif in ("br-wan", "wan0") or trace.outcome != "leaves":
                continue
            for uplink in spec.uplinks:
                if trace.device not in uplink.devices or uplink.exemptions:
                    continue
                verdicts = {
                    finding.verdict
                    for finding in proof.findings
                    if (finding.property, finding.uplink) == ("P1", uplink.name)
                }
                assert verdicts != {PROVED}, (packet, trace)


def check_state_files(listings):
    """Check that a state is decoded from files, or refused by an error of one line."""
    listing, parts = listings
    with tempfile.TemporaryDirectory() as directory:
        files = {}
        for key, document in {"nft": listing, **parts}.items():
            files[key] = Path(directory) / key
            files[key].write_text(json.dumps(document))
        try:
            state_from_files(
                files["nft"],
                [f"{family}:{files[f'ip{family}-rule']}" for family in (4, 6)],
                [str(files[f"ip{family}-route"]) for family in (4, 6)],
            )
        except Failure as error:
            assert "\n" not in str(error), error


# --- unsupported constructs ----------------------------------------------------------------


@st.composite
def unsupported_rules(draw):
    """Draw (policy, index of a rule, index of its statement, unsupported replacement)."""
    path = draw(st.sampled_from(POLICIES))
    listing = listed_objects(path)
    positions = [
        (index, position)
        for index, item in enumerate(listing)
        if "rule" in item
        for position in range(len(item["rule"]["expr"]))
    ]
    index, position = draw(st.sampled_from(positions))
    is_match = "match" in listing[index]["rule"]["expr"][position]
    return path, index, position, draw(st.sampled_from([*UNSUPPORTED, *([UNSUPPORTED_MATCH] * 2 if is_match else [])]))


def check_unsupported_rule(case):
    """Check that no proof relies on an unsupported construct."""
    path, index, position, replacement = case
    policy, state = load_policy(path), compile_file(path)
    listing = listed_objects(path)
    expr = listing[index]["rule"]["expr"]

    def proof(objects):
        tables = nft_json_decode.decode_ruleset({"nftables": objects})
        return prove(evolve(state, tables=tables), build_spec(policy))

    def leak_verdicts(objects):  # P3 does not count: a packet that one branch loses refutes it in that branch alone
        return {each.verdict for each in proof(objects).findings if each.property != "P3"}

    def objects_with(*statements):
        changed_expr = [*expr[:position], *statements, *expr[position + 1 :]]
        rule = {**listing[index]["rule"], "expr": changed_expr}
        return [*listing[:index], {"rule": rule}, *listing[index + 1 :]]

    result = proof(objects_with(replacement)).verdict
    if replacement in UNSUPPORTED:
        assert result != PROVED, (expr, position)
    elif result == PROVED:  # then the state is safe whether or not the match matches
        assert leak_verdicts(objects_with()) == {PROVED}, (expr, position)
        assert leak_verdicts([*listing[:index], *listing[index + 1 :]]) == {PROVED}, (expr, position)
