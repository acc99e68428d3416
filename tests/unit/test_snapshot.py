"""`nftpolicy snapshot`: its document, and proofs of it."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats.nft_bytecode import ruleset as nft_bytecode
from nftpolicy.netstate.formats.nft_json_decode import decode_ruleset
from nftpolicy.netstate.formats.snapshot_codec import decode_value, encode_value
from nftpolicy.netstate.routing import IpRule, Nexthop, Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Account
from nftpolicy.proof.spec import Spec, UplinkSpec
from nftpolicy.runtime.marks_in_use import MarksInUse
from nftpolicy.runtime.snapshot import (
    PolicyInForce,
    Snapshot,
    SnapshotError,
    decode_snapshot,
    encode_snapshot,
    policy_in_force,
)
from tests.forked_program import run_program
from tests.nft_messages import RECORDINGS, recorded

ROOT = Path(__file__).parents[2]
RULESETS = sorted((ROOT / "rulesets").glob("*.toml"))
DOCUMENTS = sorted((ROOT / "tests/fixtures").rglob("kernel.json"))
FASTD = ROOT / "rulesets/gluon-fastd.toml"


def account(kind, item):
    """Stand for the accounts of a machine: each name has another number."""
    return Account(str(item), 4000 + sum(map(ord, str(item))))


def compiled(file):
    return compile_policy(load(file.read_bytes(), file.name, account)[0])


def through_text(state):
    return decode_value(json.loads(json.dumps(encode_value(state))), NetState)


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_compiled_state_survives_the_document(file):
    state = compiled(file)
    assert through_text(state) == state
    assert encode_value(through_text(state)) == encode_value(state)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.parent.name)
def test_kernel_state_survives_the_document(file):
    state = NetState(decode_ruleset(json.loads(file.read_text())))
    assert encode_value(through_text(state)) == encode_value(state)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_rules_survive_the_document(name):
    state = NetState(nft_bytecode.decode_ruleset(recorded(name)))
    assert through_text(state) == state


def test_fields_that_comparison_ignores_survive():
    state = NetState(
        rules=(IpRule(4, 5, unknown=("port mask",), origin=("uplink", "wan")),),
        routes=(Route(6, 254, nexthops=(Nexthop("wan", dead=True),), expires=7, unknown=("encap",)),),
        devices=(Device("wan", ("192.0.2.1/24",), up=False, master="br", kind="veth"),),
    )
    assert encode_value(through_text(state)) == encode_value(state)
    rule, route = through_text(state).rules[0], through_text(state).routes[0]
    assert (rule.unknown, rule.origin, route.unknown, route.nexthops[0].dead) == (
        ("port mask",),
        ("uplink", "wan"),
        ("encap",),
        True,
    )


def test_equal_states_have_equal_documents():
    def state(*elements):
        return NetState((nft.Table("inet", "t", sets=(nft.Set("s", ("mark",), frozenset(elements)),)),))

    assert encode_value(state("a", "b", 3)) == encode_value(state(3, "b", "a"))


def each_place(document, path=()):
    """Yield the path of every dict and every value in a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from each_place(value, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


STATE = NetState(
    (
        nft.Table(
            "inet",
            "t",
            (nft.Chain("c", (nft.Rule((nft.Match(nft.Meta("mark"), 1), nft.DROP)),), nft.Hook("filter", "input", 0)),),
        ),
    ),
    (IpRule(4, 1),),
    (Route(4, 254),),
)


def test_changed_type_of_any_value_is_refused():
    whole = json.loads(json.dumps(encode_value(STATE)))
    places = list(each_place(whole))
    assert len(places) > 60
    for path in places:
        document = json.loads(json.dumps(whole))
        at(document, path[:-1])[path[-1]] = 1.5
        with pytest.raises(ValueError):
            decode_value(document, NetState)


def test_missing_and_unknown_keys_are_refused():
    whole = json.loads(json.dumps(encode_value(STATE)))
    objects = [(), *(path for path in each_place(whole) if isinstance(at(whole, path), dict))]
    assert len(objects) >= 10
    for path in objects:
        for key in list(at(whole, path)):
            document = json.loads(json.dumps(whole))
            del at(document, path)[key]
            with pytest.raises(ValueError, match=r"is missing|expected an object|unexpected value"):
                decode_value(document, NetState)
        document = json.loads(json.dumps(whole))
        at(document, path)["further"] = None
        with pytest.raises(ValueError, match="'further' is an unknown key"):
            decode_value(document, NetState)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rules", 0, "priority"), "5"),
        (("rules", 0, "priority"), True),
        (("rules", 0, "invert"), 0),
        (("tables", 0, "chains", 0, "rules", 0, "statements", 0, "class"), "Drop"),
        (("tables", 0, "chains", 0, "rules", 0, "statements"), "drop"),
    ],
)
def test_value_that_python_would_convert_is_refused(path, value):
    document = json.loads(json.dumps(encode_value(STATE)))
    at(document, path[:-1])[path[-1]] = value
    with pytest.raises(ValueError):
        decode_value(document, NetState)


def test_deeply_nested_document_is_refused():
    item = {"class": "Meta", "key": "mark"}
    for _ in range(5000):
        item = {"class": "Bitwise", "operand": item, "and_mask": 1, "or_bits": 0}
    document = encode_value(STATE)
    document["tables"][0]["chains"][0]["rules"][0]["statements"][0]["left"] = item
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_value(document, NetState)


# --- the whole document --------------------------------------------------------------------------


def fastd_snapshot(**changes):
    named = FASTD.read_bytes().replace(b"= 800", b'= "gluon-fastd"')
    policy = policy_in_force("gluon-fastd.toml", named, account)
    state = compile_policy(policy.load()[0])
    return evolve(
        Snapshot(
            state, {"br-wan": ("eth0",)}, frozenset({"lo", "br-wan", "eth0"}), True, (4, 6), policy, "0", "6", "t"
        ),
        **changes,
    )


def test_snapshot_survives_its_document():
    snapshot = fastd_snapshot()
    assert decode_snapshot(encode_snapshot(snapshot).encode()) == snapshot


def test_policy_keeps_the_numbers_of_its_machine():
    snapshot = decode_snapshot(encode_snapshot(fastd_snapshot()).encode())
    policy, source = snapshot.policy.load()
    assert policy.service["fastd"].group == account("group", "gluon-fastd")
    assert source.line_of(("service", "fastd")) is not None
    with pytest.raises(PolicyError, match="no number of group 'gluon-fastd'"):
        evolve(snapshot.policy, accounts=()).load()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": "nftpolicy snapshot 2"}', b'{"nftables": []}'],
    ids=["empty", "list", "object", "bytes", "nested", "version", "ruleset"],
)
def test_other_document_is_no_snapshot(text):
    with pytest.raises(SnapshotError):
        decode_snapshot(text)


def test_damaged_snapshot_is_refused():
    whole = json.loads(encode_snapshot(fastd_snapshot()))
    for key in whole:
        document = dict(whole)
        del document[key]
        with pytest.raises(SnapshotError):
            decode_snapshot(json.dumps(document).encode())
        with pytest.raises(SnapshotError):
            decode_snapshot(json.dumps({**whole, key: 1.5}).encode())
    with pytest.raises(SnapshotError, match="'more' is an unknown key"):
        decode_snapshot(json.dumps({**whole, "more": 1}).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("marks", {"class": "MarksInUse", "flows": [[1, 2], [1, 3]], "sockets": None}),
        ("marks", {"class": "MarksInUse", "flows": [["1", 2]], "sockets": None}),
        ("marks", {"class": "MarksInUse", "flows": [[1, 2, 3]], "sockets": None}),
        ("marks", {"flows": None, "sockets": None}),
        ("policy", {"class": "PolicyInForce", "name": "p", "text": "", "accounts": [["user", "u"]]}),
        ("bridge_ports", [["br", ["a"]], ["br", ["b"]]]),
        ("bridge_ports", {"br": ["a"]}),
    ],
)
def test_snapshot_with_a_damaged_part_is_refused(key, value):
    whole = json.loads(encode_snapshot(fastd_snapshot()))
    with pytest.raises(SnapshotError, match="damaged"):
        decode_snapshot(json.dumps({**whole, key: value}).encode())


def test_snapshot_with_a_key_twice_is_refused():
    text = encode_snapshot(fastd_snapshot())
    with pytest.raises(SnapshotError, match="the key 'state' is there twice"):
        decode_snapshot(text.replace("{", '{"state": null, ', 1).encode())


# --- verify --snapshot ---------------------------------------------------------------------------


def verify(*arguments, given=b""):
    return run_program("verify", *arguments, given=given, cwd=ROOT)


@pytest.fixture
def file(tmp_path):
    def write(**changes):
        path = tmp_path / "snapshot.json"
        path.write_text(encode_snapshot(fastd_snapshot(bridge_ports={}, **changes)))
        return path

    return write


def test_snapshot_with_its_policy_is_proved(file):
    done = verify("--snapshot", file(time="2026-01-01T00:00:00Z"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(b"proved: gluon-fastd: the snapshot of 2026-01-01T00:00:00Z: P1 to P5 hold")


def test_snapshot_without_guard_is_refuted(file):
    state = compiled(FASTD)
    route = Route(4, 254, gateway="192.0.2.1", device="br-wan")
    done = verify("--snapshot", file(state=evolve(state, tables=(), routes=(*state.routes, route))))
    assert done.returncode == 1, done.stdout
    assert done.stdout.startswith(b"REFUTED")


def test_snapshot_without_egress_hook_is_narrower(file):
    done = verify("--snapshot", file(egress_hook=False))
    assert b"this kernel has no netdev egress hook" in done.stdout


def test_missing_bridge_port_guard_is_seen(tmp_path):
    path = tmp_path / "snapshot.json"
    path.write_text(encode_snapshot(fastd_snapshot()))  # eth0 is a port of br-wan, without a link guard
    done = verify("--snapshot", path)
    assert done.returncode == 1, done.stdout


def test_snapshot_without_policy_wants_one(file):
    path = file(policy=None)
    done = verify("--snapshot", path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no policy was in force; name one, or its uplinks" in done.stderr
    done = verify("--snapshot", path, "--uplink", "wan=br-wan", "--mark", "1/1")
    assert done.returncode in (0, 1), done.stderr
    assert verify("--snapshot", path, FASTD).stdout


@pytest.mark.parametrize("option", [["--live"], ["--ruleset", "x"], ["--rules", "x"], ["--routes", "x"]])
def test_snapshot_excludes_other_states(file, option):
    done = verify("--snapshot", file(), *option)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--snapshot is a whole state" in done.stderr


def test_snapshot_on_standard_input(file):
    text = file().read_bytes()
    assert verify("--snapshot", "-", given=text).returncode == 0
    done = verify("--snapshot", "-", given=text[:-100])
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"nftpolicy: standard input: not the JSON that 'nftpolicy snapshot' prints: ")
    assert verify("--snapshot", file().with_name("none")).returncode == 2


def test_policy_that_is_not_valid_is_named(file):
    done = verify("--snapshot", file(policy=PolicyInForce("p.toml", 'name = "p"\n')))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"the policy in it is not valid: p.toml: 'inside', 'uplink' are missing" in done.stderr


@pytest.mark.parametrize("marks", [MarksInUse(), MarksInUse({0: 5, 0x71: 2, 1: 1}, {}), MarksInUse({}, {3: 4})])
def test_marks_in_use_survive_the_document(marks):
    snapshot = fastd_snapshot(marks=marks)
    assert decode_snapshot(encode_snapshot(snapshot).encode()) == snapshot


def test_marks_in_use_count_for_their_uplink():
    spec = Spec((UplinkSpec("wan", ("wan0",), 1, 0xF), UplinkSpec("lte", ("lte0",), 2, 0xF)))
    counted = MarksInUse({0: 5, 0x71: 2, 1: 1}, None).count(spec)
    assert [(one.marked_flows, one.marked_sockets) for one in counted.uplinks] == [(3, None), (0, None)]
