"""Fuzz targets: a strategy for the input, and a check of each input."""

import json
import tomllib

from attrs import frozen
from hypothesis import strategies as st

from fuzz import command_documents, kernel_commands, kernel_listings, uci_files, written_text
from fuzz.hostile_text import SEEDS
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.formats import nft_json_decode, nft_json_encode, nft_text
from nftpolicy.policy.errors import PolicyError, PolicyText
from nftpolicy.policy.load import load
from tests import policy_strategies
from tests.properties import test_policy_invariant


@frozen
class Target:
    """Named fuzz target: a strategy and a check that raises on failure."""

    name: str
    inputs: st.SearchStrategy
    check: object


def check_policy(data):
    """Check that a policy compiles and can be written, or is refused by an error of one line."""
    try:
        loaded, _ = load(data, "FILE")
    except PolicyError as error:
        message = str(error)
        assert message.startswith("FILE"), message
        assert "\n" not in message, message
        for each in (error, *error.more_errors):
            assert each.line is None or 1 <= each.line <= data.count(b"\n") + 1
            lines = each.excerpt.split("\n") if each.excerpt else []
            assert len(lines) in (0, 2) and all(line.startswith("    ") and line.isprintable() for line in lines), lines
        return
    for table in compile_policy(loaded).tables:
        nft_text.table_text(table)


def check_listing(document):
    """Check that an nft listing is decoded, or refused by ValueError."""
    try:
        tables = nft_json_decode.decode_ruleset(document)
    except ValueError:
        return
    for table in tables:
        try:
            nft_text.table_text(table)  # unsupported values raise ValueError too
        except (ValueError, TypeError):
            continue


def check_lines(data):
    """Check that every key of a TOML text has a line."""
    source = data.decode(errors="replace")
    positions = PolicyText("FILE", source)
    try:
        document = tomllib.loads(source)
    except (ValueError, RecursionError):
        positions.line_of(("name",))
        return
    for path in _paths(document):
        line = positions.line_of(path)
        assert line is not None and 1 <= line <= source.count("\n") + 1, path


def _paths(item, path=()):
    children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, value in children:
        yield (*path, key)
        yield from _paths(value, (*path, key))


@st.composite
def edited_policies(draw):
    """Draw a valid policy with some bytes changed, deleted, doubled or inserted."""
    data = draw(policy_strategies.toml()).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.binary(max_size=6) | st.sampled_from(TOKENS) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


TOKENS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"'",
    b'"""',
    b"=",
    b".",
    b",",
    b"#",
    b"\n",
    b"\\",
    b"0x",
    b"true",
    b"1e9",
    b"[[a]]",
]
TOML_KEYS = ("name", "inside", "uplink", "service", "wan", "devices", "mark", "table", "resolver", "listen", "a b", "")
NFT_KEYS = ("nftables", "table", "chain", "rule", "set", "counter", "map", "family", "name", "hook", "prio", "policy")
NFT_KEYS += ("dev", "type", "expr", "elem", "flags", "match", "op", "left", "right", "meta", "key", "payload", "field")
NFT_KEYS += (
    "protocol",
    "ct",
    "dir",
    "concat",
    "range",
    "prefix",
    "addr",
    "len",
    "vmap",
    "data",
    "goto",
    "jump",
    "target",
)
NFT_KEYS += ("accept", "mangle", "value", "dnat", "port", "val", "packets", "bytes", "comment", "&", "|", "metainfo")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NFT_KEYS)


def _json(keys):
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=25,
    )


BODY = {
    "family": st.sampled_from(("inet", "ip", "netdev")),
    "table": st.sampled_from(("t", "u")),
    "name": st.sampled_from(("t", "c")),
    "chain": st.just("c"),
}


@st.composite
def listings(draw):
    """Draw something like a listing: mutated real objects, or arbitrary JSON."""
    values = _json(st.sampled_from(NFT_KEYS))
    kinds = st.sampled_from(("table", "chain", "rule", "set", "counter", "map", "metainfo"))
    loose = {key: draw(values) for key in draw(st.lists(st.sampled_from(NFT_KEYS), max_size=5))}
    body = st.fixed_dictionaries(BODY, optional={"expr": st.lists(values), "elem": st.lists(values), "type": values})
    entry = st.dictionaries(kinds, body.map(lambda fields: {**fields, **loose}), max_size=2)
    entries = draw(st.lists(entry, max_size=4))
    if draw(st.booleans()):
        tables = compile_policy(draw(policy_strategies.policies(most_uplinks=1, most_services=1))).tables
        commands = nft_json_encode.encode_ruleset(tables)["nftables"]
        entries += [command["add"] for command in commands if "add" in command]
        index = draw(st.integers(0, len(entries) - 1))
        entries[index] = _mutate(draw, entries[index], draw(values))
    return {"nftables": entries}


def _mutate(draw, item, value):
    """Return `item` with a random part replaced by `value`."""
    if not item or not isinstance(item, dict | list) or draw(st.integers(0, 4)) == 0:
        return value
    keys = sorted(item) if isinstance(item, dict) else range(len(item))
    chosen = draw(st.sampled_from(list(keys)))
    copy = dict(item) if isinstance(item, dict) else list(item)
    copy[chosen] = _mutate(draw, item[chosen], value)
    return copy


@st.composite
def layouts(draw):
    """Draw TOML in unusual layouts: dotted and quoted keys, inline tables, multi-line lists."""
    blank = st.sampled_from(("", " ", "\t"))
    bare = st.sampled_from(TOML_KEYS).map(lambda key: key if key.isalpha() else json.dumps(key))
    key = st.lists(bare, min_size=1, max_size=3).map(".".join)
    between = st.sampled_from(("", " ", "\n", "# [x]\n", "\r\n  "))
    value = st.recursive(
        st.sampled_from(("1", "true", '"a#b"', "'[x]'", '"""\n[x]\na=1"""', "'''\n'''", "2020-01-01", "0x1f", "inf")),
        lambda inner: st.one_of(
            st.lists(st.tuples(between, inner, between).map("".join), max_size=3).map(
                lambda items: f"[{','.join(items)}]"
            ),
            st.lists(st.tuples(key, blank, st.just("="), inner).map("".join), max_size=2).map(
                lambda pairs: f"{{{','.join(pairs)}}}"
            ),
        ),
        max_leaves=6,
    )
    pair = st.tuples(blank, key, blank, st.just("="), blank, value).map("".join)
    header = key.map(lambda name: f"[ {name} ] # x") | key.map(lambda name: f"[[{name}]]")
    return "\n".join(draw(st.lists(pair | pair | header | st.sampled_from(("", "# a = 1")), max_size=8))).encode()


def _body(test):
    """Return the function that a hypothesis test runs per example."""
    return test.hypothesis.inner_test


TARGETS = (
    Target("policy-bytes", st.binary(max_size=300), check_policy),
    Target("policy-edited", edited_policies(), check_policy),
    Target("policy-layout", layouts(), check_policy),
    Target("lines-bytes", st.binary(max_size=200), check_lines),
    Target("lines-edited", edited_policies(), check_lines),
    Target("lines-layout", layouts(), check_lines),
    Target("listing-json", _json(st.sampled_from(NFT_KEYS) | st.text(max_size=4)), check_listing),
    Target("listing-like", listings(), check_listing),
    Target("ip-json", kernel_listings.ip_documents(), kernel_listings.check_ip_listing),
    Target("desk", kernel_listings.host_listings(), kernel_listings.check_state_files),
    Target("judged", kernel_listings.host_listings(), kernel_listings.check_proof_of_listings),
    Target("odd", kernel_listings.unsupported_rules(), kernel_listings.check_unsupported_rule),
    Target("uci-bytes", uci_files.RANDOM_FILES, uci_files.check_import),
    Target("uci-edited", uci_files.edited_files(), uci_files.check_import),
    Target("uci-made-up", uci_files.synthetic_files(), uci_files.check_import),
    *(Target(name, SEEDS, written_text.writer_check(name)) for name in written_text.WRITERS),
    Target("commands", SEEDS, command_documents.check_command),
    Target("kernel", SEEDS, kernel_commands.check_kernel_command),
    Target(
        "scenes",
        test_policy_invariant.scenes(),
        _body(test_policy_invariant.test_packet_leaving_by_uplink_is_marked_or_excused),
    ),
    Target("proofs", test_policy_invariant.CROWDS, _body(test_policy_invariant.test_proofs_and_traces_agree)),
    Target(
        "policies",
        policy_strategies.policies(most_uplinks=5),
        _body(test_policy_invariant.test_compiled_policy_is_proved),
    ),
)
