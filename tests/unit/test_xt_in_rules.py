"""Extensions of iptables in lifted rules: what follows them, and the header fields that they read."""

import struct

import pytest

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats.nft_bytecode.rule_state import RuleContext
from nftpolicy.netstate.formats.nft_bytecode.rules import RawRule, RuleLifter
from nftpolicy.netstate.formats.nft_bytecode.sets import SetTable
from nftpolicy.netstate.formats.xt_decode import decode_xt

MARK = nft.Meta("mark")


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(value):
    return struct.pack(">I", value)


def expression(name, **attributes):
    found = b"".join(attribute(int(kind[1:]), value) for kind, value in attributes.items())
    return attribute(1, name.encode() + b"\0") + attribute(2, found)


def extension(kind, name, revision, info):
    info += bytes(-len(info) % 8)
    return expression(kind, _1=name.encode() + b"\0", _2=number(revision), _3=info)


LOAD_MARK = expression("meta", _2=number(3), _1=number(1))
IS_UNMARKED = expression("cmp", _1=number(1), _2=number(0), _3=attribute(1, bytes(4)))
IS_TCP = [
    expression("meta", _2=number(16), _1=number(1)),
    expression("cmp", _1=number(1), _2=number(0), _3=attribute(1, b"\6")),
]
ACCEPT = expression("immediate", _1=number(0), _2=attribute(2, attribute(1, number(1))))
SET_MARK = extension("target", "MARK", 2, struct.pack("=II", 5, 0xFFFFFFFF))
RESTORE = extension("target", "CONNMARK", 2, struct.pack("=IIIBBBx", 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 2))
SYN = extension("match", "tcp", 0, struct.pack("=HHHHBBBB", 0, 0xFFFF, 22, 22, 0, 0x17, 2, 0))


def lift(*expressions):
    context = RuleContext("ip", SetTable("little"), {}, "little", decode_xt)
    return RuleLifter().lift(RawRule("t", "c", expressions, None), context).statements


def is_unsupported(statements):
    return any(isinstance(each, nft.UnknownStatement | nft.UnknownExpression) for each in statements) or any(
        isinstance(each, nft.Match) and isinstance(each.left, nft.UnknownExpression) for each in statements
    )


def test_xt_target_makes_loaded_marks_stale():
    assert lift(LOAD_MARK, IS_UNMARKED, SET_MARK) == (nft.Match(MARK, 0), nft.Mangle(MARK, 5))
    assert is_unsupported(lift(LOAD_MARK, SET_MARK, IS_UNMARKED))


def test_xt_connmark_ends_the_rule_or_is_unsupported():
    assert lift(RESTORE) == (nft.Mangle(MARK, nft.Ct("mark")),)
    assert is_unsupported(lift(RESTORE, ACCEPT))


@pytest.mark.parametrize("tests", [[], IS_TCP])
def test_xt_tcp_flags_have_a_name_in_tcp_only(tests):
    *_, ports, flags = lift(*tests, SYN)
    assert ports == nft.Match(nft.Payload("th", "dport"), 22)
    named, raw = nft.Payload("tcp", "flags"), nft.RawPayload("th", 104, 8)
    assert flags.left.operand == (named if tests else raw)


def test_xt_icmp_type_has_a_name_in_icmp_only():
    echo = extension("match", "icmp", 0, bytes((8, 0, 255, 0)))
    is_icmp = [IS_TCP[0], expression("cmp", _1=number(1), _2=number(0), _3=attribute(1, b"\1"))]
    assert lift(echo) == (nft.Match(nft.RawPayload("th", 0, 8), 8),)
    assert lift(*is_icmp, echo)[-1] == nft.Match(nft.Payload("icmp", "type"), "echo-request")
