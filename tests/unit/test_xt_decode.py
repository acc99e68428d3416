"""The decoder of iptables extensions, on bytes that iptables-nft 1.8.9 and Linux 6.18 recorded."""

import json
import struct
from pathlib import Path

import pytest

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.xt_decode import decode_xt
from nftpolicy.netstate.formats.xt_match_decode import MATCHES, TESTS
from nftpolicy.netstate.formats.xt_target_decode import NEUTRAL_TARGETS, TARGETS

RECORDED = json.loads((Path(__file__).parent.parent / "fixtures" / "xt_iptables.json").read_text())
EXPRESSIONS = [
    pytest.param(each, {"iptables-nft": "ip", "ip6tables-nft": "ip6"}[rule["program"]], id=f"{number}-{each['name']}")
    for number, rule in enumerate(RECORDED)
    for each in rule["expressions"]
]
MARK, CT_MARK = nft.Meta("mark"), nft.Ct("mark")


def decode(kind, name, revision, layout, *values, family="ip"):
    info = struct.pack("<" + layout, *values)
    return decode_xt(kind, name, revision, info + bytes(-len(info) % 8), family, "little")


def is_unsupported(statements):
    return [type(each) for each in statements] == [nft.UnknownStatement]


@pytest.mark.parametrize(("recorded", "family"), EXPRESSIONS)
def test_decode_xt_of_recorded_bytes_returns_statements(recorded, family):
    info = bytes.fromhex(recorded["info"])
    statements = decode_xt(recorded["kind"], recorded["name"], recorded["revision"], info, family, "little")
    assert " ".join(map(nft_text.display_text, statements)) == recorded["statements"]


@pytest.mark.parametrize(("recorded", "family"), EXPRESSIONS)
def test_decode_xt_of_unknown_revision_is_unsupported(recorded, family):
    info = bytes.fromhex(recorded["info"])
    assert is_unsupported(decode_xt(recorded["kind"], recorded["name"], 77, info, family, "little"))


@pytest.mark.parametrize(("recorded", "family"), EXPRESSIONS)
def test_decode_xt_of_wrong_size_is_unsupported(recorded, family):
    name, revision = recorded["name"], recorded["revision"]
    if revision in TESTS.get(name, ()) or revision in NEUTRAL_TARGETS.get(name, ()):
        return  # what the struct holds does not matter
    info = bytes.fromhex(recorded["info"])
    for wrong in (info[:-8], info + bytes(8), info[:-1]):
        assert is_unsupported(decode_xt(recorded["kind"], name, revision, wrong, family, "little"))


def test_decode_xt_of_unknown_names_is_unsupported():
    for kind, name in (("match", "newest"), ("target", "ACCOUNT"), ("target", "mark"), ("watcher", "LOG")):
        assert is_unsupported(decode_xt(kind, name, 0, bytes(8), "ip"))


def test_decode_xt_of_bridge_tables_knows_tests_and_logs():
    assert is_unsupported(decode("target", "MARK", 2, "II", 1, 1, family="bridge"))
    assert is_unsupported(decode("target", "TCPMSS", 0, "H", 1, family="bridge"))
    assert is_unsupported(decode("match", "socket", 3, "B", 4, family="bridge"))
    assert decode("match", "mark_m", 0, "8x", family="bridge") == (nft.UnmodelledMatch("xt match mark_m"),)
    assert decode("target", "log", 0, "8x", family="bridge") == (nft.NeutralTarget("log"),)
    assert decode("target", "MARK", 2, "II", 1, 1) == (nft.Mangle(MARK, nft.Bitwise(MARK, 0xFFFFFFFE, 1)),)


@pytest.mark.parametrize(
    ("kind", "name", "revision", "layout", "values"),
    [
        ("match", "mark", 1, "IIB", (1, 1, 2)),
        ("match", "owner", 1, "IIIIBB", (1, 1, 0, 0, 0x11, 0)),
        ("match", "owner", 1, "IIIIBB", (1, 1, 0, 0, 1, 2)),
        ("match", "state", 0, "I", (1 << 5,)),
        ("match", "tcp", 0, "HHHHBBBB", (0, 0xFFFF, 0, 0xFFFF, 0, 0, 0, 16)),
        ("match", "udp", 0, "HHHHB", (0, 0xFFFF, 0, 0xFFFF, 4)),
        ("match", "multiport", 1, "BB15H15BB", (3, 1, *[5] * 15, *[0] * 15, 0)),
        ("match", "multiport", 1, "BB15H15BB", (0, 1, *[5] * 15, *[1] * 15, 0)),
        ("match", "addrtype", 1, "HHI", (0, 4, 16)),
        ("match", "addrtype", 1, "HHI", (0, 1 << 12, 0)),
        ("match", "iprange", 1, "64sB", (bytes(64), 4)),
        ("match", "pkttype", 0, "ii", (5, 0)),
        ("match", "socket", 3, "B", (8,)),
        ("match", "socket", 2, "B", (4,)),
        ("match", "cgroup", 2, "BBBB516s8x", (1, 1, 0, 0, bytes(516))),
        ("target", "CONNMARK", 2, "IIIBBB", (0, 0, 0, 0, 0, 3)),
        ("target", "CONNMARK", 2, "IIIBBB", (0, 0, 0, 2, 0, 0)),
        ("target", "CONNMARK", 2, "IIIBBB", (0, 0, 0, 0, 32, 0)),
        ("target", "CT", 2, "HHII16s32s8x", (32, 0, 0, 0, bytes(16), bytes(32))),
        ("target", "CT", 2, "HHII16s32s8x", (16, 0, 0, 0, bytes(16), bytes(32))),
        ("target", "REJECT", 0, "I", (4,)),
        ("target", "NFQUEUE", 3, "HHH", (0, 1, 4)),
        ("target", "SNAT", 0, "II4s4s2s2s", (1, 128, b"", b"", b"", b"")),
        ("target", "SNAT", 0, "II4s4s2s2s", (2, 1, b"", b"", b"", b"")),
        ("target", "SET", 3, "20x", ()),
    ],
)
def test_decode_xt_of_unknown_bits_is_unsupported(kind, name, revision, layout, values):
    assert is_unsupported(decode(kind, name, revision, layout, *values))


def test_decode_xt_of_inverted_owner_passes_socketless_packets():
    (unless,) = decode("match", "owner", 1, "IIIIBB", 5, 9, 0, 0, 1, 1)
    assert unless == nft.Unless((nft.Match(nft.Meta("skuid"), "5-9"),))
    both = decode("match", "owner", 1, "IIIIBB", 5, 5, 7, 7, 3, 1)  # the group needs a socket anyway
    assert both == (nft.Match(nft.Meta("skuid"), 5, "!="), nft.Match(nft.Meta("skgid"), 7))


def test_decode_xt_of_mark_bits_outside_mask_flips_bits():
    assert decode("target", "MARK", 2, "II", 6, 2) == (
        nft.Mangle(MARK, nft.Binary("^", nft.Bitwise(MARK, 0xFFFFFFFD), 6)),
    )


def test_decode_xt_of_connmark_shifts_the_moved_bits():
    (save,) = decode("target", "CONNMARK", 2, "IIIBBB", 0, 0xFF00, 0xFF, 0, 8, 1)
    shifted = nft.Binary("<<", nft.Bitwise(MARK, 0xFF), 8)
    assert save == nft.Mangle(CT_MARK, nft.Binary("|", nft.Bitwise(CT_MARK, 0xFFFF00FF), shifted))
    (restore,) = decode("target", "CONNMARK", 1, "IIIB", 0, 0xFF, 0xFF, 2)
    kept = nft.Bitwise(MARK, 0xFFFFFF00)
    assert restore == nft.Mangle(MARK, nft.Binary("|", kept, nft.Bitwise(CT_MARK, 0xFF)))


def test_decode_xt_of_cgroup_has_an_unknown_result():
    path = decode("match", "cgroup", 2, "BBBB512s4x8x", 1, 0, 0, 0, b"user.slice")
    assert path == (nft.UnmodelledMatch("xt match cgroup --path user.slice"),)
    assert decode("match", "cgroup", 1, "BBBB4096s4x8x", 1, 0, 0, 0, b"user.slice") == path


def test_decode_xt_of_restored_socket_mark_writes_mark():
    test, write = decode("match", "socket", 3, "B", 4)
    assert isinstance(test, nft.UnmodelledMatch)
    assert isinstance(write, nft.Mangle) and write.key == MARK
    assert decode("match", "socket", 3, "B", 3) == (test,)


def test_decode_xt_of_ctstate_with_more_needs_connection():
    def conntrack(flags, invert, states):
        layout = "128xIIHHHHHHHHH8x"
        return decode("match", "conntrack", 3, layout + "2x", 0, 0, 6, 0, 0, 0, 0, flags, invert, states, 0)

    certain, protocol = conntrack(3, 0, 2)  # established: only a packet with a connection
    assert certain == nft.Match(nft.Ct("state"), "established", "in")
    assert protocol == nft.Match(nft.Ct("protocol"), 6)
    _, unknown = conntrack(3, 0, 1)  # invalid: the kernel does not look at the protocol
    assert isinstance(unknown, nft.UnmodelledMatch)


def test_decode_xt_of_big_endian_machine_reads_its_order():
    info = struct.pack(">II", 5, 0xFFFFFFFF)
    assert decode_xt("target", "MARK", 2, info, "ip", "big") == (nft.Mangle(MARK, 5),)


def test_decode_xt_of_log_prefix_escapes_control_characters():
    (log,) = decode("target", "LOG", 0, "BB30s", 4, 0, b"a\x1b[2J\xff")
    assert log == nft.Log((("prefix", "a\\x1b[2J\\xff"),))


def test_xt_tables_have_each_revision_once():
    listed = {(name, revision) for name, revisions in TESTS.items() for revision in revisions}
    assert not listed & set(MATCHES)
    assert not {(name, revision) for name, revisions in NEUTRAL_TARGETS.items() for revision in revisions} & set(
        TARGETS
    )
