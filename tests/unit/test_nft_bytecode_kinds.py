"""Kinds of expressions of the kernel: what their bytes mean, and what is refused. Messages are built here."""

import pytest

from nftpolicy.model.nft.hooks import needs_conntrack
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.nft_bytecode.elements import decode_elements
from nftpolicy.netstate.formats.nft_bytecode.ruleset import decode_ruleset
from nftpolicy.netstate.formats.nft_bytecode.sets import SetTable, decode_set
from tests.nft_messages import recorded
from tests.unit.test_nft_bytecode import (
    attribute,
    bitwise,
    cmp,
    data,
    element,
    expression,
    lift,
    meta,
    number,
    payload,
    set_table,
    verdict,
)

MARK, CT_MARK = 3, 3
LOOKUP = expression("lookup", attribute(1, b"s\0"), number(2, 1))
DSCP = payload(1, 1, 1), bitwise(b"\xfc", b"\0")
IP_DSCP = nft.Payload("ip", "dscp")


def shift(op: int, bits: int, length: int) -> bytes:
    parts = number(1, 1), number(2, 1), number(3, length), number(6, op), data(7, bits.to_bytes(4, "little"))
    return expression("bitwise", *parts)


SET_MARK = expression("meta", number(2, MARK), number(3, 1))
LEFT, RIGHT = 1, 2


def is_unsupported(statements: tuple[nft.Statement, ...]) -> bool:
    return any(
        isinstance(each, nft.UnknownStatement)
        or (isinstance(each, nft.Match) and isinstance(each.left, nft.UnknownExpression))
        for each in statements
    )


def test_every_recorded_rule_is_supported() -> None:
    tables = (table for name in ("ruleset", "grammar") for table in decode_ruleset(recorded(name)))
    rules = [rule for table in tables for chain in table.chains for rule in chain.rules]
    assert len(rules) > 150
    assert [nft_text.display_text(rule) for rule in rules if is_unsupported(rule.statements)] == []


# --- fields that a mask cuts out ---------------------------------------------------------


def anonymous(*elements: bytes, flags: int = 1, length: int = 1) -> SetTable:
    return set_table(*elements, flags=flags, key_type=4, key_length=length)


def test_lift_masked_key_is_field_with_shifted_elements() -> None:
    sets = anonymous(element(b"\x20"), element(b"\x28"))
    assert lift(*DSCP, LOOKUP, family="ip", sets=sets) == (nft.Match(IP_DSCP, nft.AnonymousSet(frozenset({8, 10}))),)


@pytest.mark.parametrize("impossible", [b"\x21", b"\x03"])
def test_lift_element_that_no_field_has_is_kept(impossible: bytes) -> None:
    sets = anonymous(element(b"\x20"), element(impossible))
    whole = nft.Bitwise(nft.RawPayload("nh", 8, 8), 0xFC)
    expected = nft.Match(whole, nft.AnonymousSet(frozenset({0x20, impossible[0]})))
    assert lift(*DSCP, LOOKUP, family="ip", sets=sets) == (expected,)


def test_lift_interval_of_masked_key_has_shifted_ends() -> None:
    end = number(3, 1)
    sets = anonymous(element(b"\x10"), element(b"\x1d", end), flags=5)  # 0x10 to 0x1c
    assert lift(*DSCP, LOOKUP, family="ip", sets=sets) == (nft.Match(IP_DSCP, nft.AnonymousSet(frozenset({"4-7"}))),)
    empty = anonymous(element(b"\x11"), element(b"\x14", end), flags=5)  # no multiple of 4
    (match,) = lift(*DSCP, LOOKUP, family="ip", sets=empty)
    assert match == nft.Match(nft.Bitwise(nft.RawPayload("nh", 8, 8), 0xFC), nft.AnonymousSet(frozenset({"17-19"})))


def test_lift_order_of_masked_field_needs_its_low_bits_clear() -> None:
    assert lift(*DSCP, cmp(b"\x20", op=4), family="ip") == (nft.Match(IP_DSCP, 8, ">"),)
    whole = nft.Bitwise(nft.RawPayload("nh", 8, 8), 0xFC)
    assert lift(*DSCP, cmp(b"\x21", op=4), family="ip") == (nft.Match(whole, 0x21, ">"),)


def test_lift_mask_with_gap_is_no_field() -> None:
    (match,) = lift(payload(1, 1, 1), bitwise(b"\xf4", b"\0"), cmp(b"\x20", op=4), family="ip")
    assert match == nft.Match(nft.Bitwise(nft.RawPayload("nh", 8, 8), 0xF4), 0x20, ">")


def device(name: bytes) -> bytes:
    return element(name.ljust(16, b"\0"))


def test_lift_merged_device_names_are_separate_again() -> None:
    end, load = number(3, 1), meta(7)
    behind = element(b"b".ljust(15, b"\0") + b"\1", end)
    merged = set_table(device(b"a"), behind, flags=5, key_type=41, key_length=16)
    names = nft.AnonymousSet(frozenset({"a*", "b"}))
    assert lift(load, LOOKUP, sets=merged) == (nft.Match(nft.Meta("oifname"), names),)
    part = set_table(device(b"a"), element(b"ab".ljust(15, b"\0") + b"\2", end), flags=5, key_type=41, key_length=16)
    assert is_unsupported(lift(load, LOOKUP, sets=part))


@pytest.mark.parametrize(("place", "is_named"), [(64, True), (72, False)], ids=["time to live", "protocol"])
def test_lift_write_keeps_established_protocols(place: int, is_named: bool) -> None:
    constant = expression("immediate", number(1, 9), data(2, b"\5"))
    parts = number(2, 1), number(3, place // 8), number(4, 1), number(5, 9), number(6, 1), number(7, 10)
    family = meta(15), cmp(b"\2")
    *_, match = lift(*family, constant, expression("payload", *parts), payload(1, 12, 4), cmp(KEY))
    assert isinstance(match, nft.Match) and (match.left == nft.Payload("ip", "saddr")) is is_named


# --- numbers that are shorter than a word --------------------------------------------------


def test_lift_short_value_is_the_low_part_of_a_mark() -> None:
    assert lift(*DSCP, shift(RIGHT, 2, 1), SET_MARK, family="ip") == (nft.Mangle(nft.Meta("mark"), IP_DSCP),)


def test_lift_big_endian_value_is_not_written_to_a_mark() -> None:
    port = payload(2, 0, 2)
    assert is_unsupported(lift(port, SET_MARK))
    swap = expression("byteorder", number(1, 1), number(2, 1), number(3, 0), number(4, 2), number(5, 2))
    assert lift(port, swap, SET_MARK) == (nft.Mangle(nft.Meta("mark"), nft.Payload("th", "sport")),)


def test_lift_swap_into_other_register_leaves_its_rest() -> None:
    swap = expression("byteorder", number(1, 1), number(2, 9), number(3, 0), number(4, 2), number(5, 2))
    write = expression("meta", number(2, MARK), number(3, 9))
    assert is_unsupported(lift(payload(2, 0, 2), swap, write))


def test_lift_short_value_is_not_written_to_a_longer_field() -> None:
    write = expression("payload", number(2, 1), number(3, 12), number(4, 4), number(5, 1), number(6, 1), number(7, 10))
    assert is_unsupported(lift(payload(1, 4, 2), write, family="ip"))


def test_lift_shift_of_a_word_keeps_the_bits_above_a_byte() -> None:
    shifted = nft.Binary("<<", IP_DSCP, 26)
    masked = bitwise(b"\xef\xff\xff\xff", b"\x10\0\0\0")
    found = lift(*DSCP, shift(RIGHT, 2, 1), shift(LEFT, 26, 4), masked, SET_MARK, family="ip")
    assert found == (nft.Mangle(nft.Meta("mark"), nft.Bitwise(shifted, nft.FULL_MASK, 0x10)),)


def test_lift_shift_out_of_a_byte_is_unsupported() -> None:
    prefix = (*DSCP, shift(RIGHT, 2, 1))
    assert is_unsupported(lift(*prefix, shift(LEFT, 4, 1), SET_MARK, family="ip"))
    assert is_unsupported(lift(*prefix, shift(LEFT, 4, 1), shift(RIGHT, 2, 1), SET_MARK, family="ip"))
    assert not is_unsupported(lift(*prefix, shift(LEFT, 2, 1), SET_MARK, family="ip"))


def test_lift_mask_of_a_word_behind_a_byte_is_one_of_the_byte() -> None:
    sets = anonymous(element(b"\4"), flags=1)
    found = lift(payload(1, 0, 1), bitwise(b"\x0f\0\0\0", bytes(4)), LOOKUP, family="ip", sets=sets)
    assert found == (nft.Match(nft.Payload("ip", "hdrlength"), nft.AnonymousSet(frozenset({4}))),)
    beyond = lift(payload(1, 0, 1), bitwise(b"\x0f\0\0\0", b"\0\1\0\0"), SET_MARK, family="ip")
    assert beyond == (nft.Mangle(nft.Meta("mark"), nft.Bitwise(nft.RawPayload("nh", 0, 8), 15, 256)),)
    assert is_unsupported(lift(payload(1, 0, 1), bitwise(b"\x0f\0\0\0\0", bytes(5)), SET_MARK, family="ip"))


# --- options ---------------------------------------------------------------------------------


def option(kind: int, number_: int, offset: int, length: int, flags: int = 0) -> bytes:
    parts = number(1, 1), number(2, number_, 1), number(3, offset), number(4, length), number(5, flags), number(6, kind)
    return expression("exthdr", *parts)


OPTION_FIELDS = {
    "tcp option sack1 left": (1, 5, 10, 4),
    "tcp option sack3 right": (1, 5, 30, 4),
    "tcp option @5,272,32": (1, 5, 34, 4),
    "tcp option @254,8,8": (1, 254, 1, 1),
    "tcp option maxseg size": (1, 2, 2, 2),
    "srh sid[1]": (0, 43, 8, 16),
    "sctp chunk cwr lowest-tsn": (3, 13, 4, 4),
    "ip option ssrr ptr": (2, 137, 2, 1),
}


@pytest.mark.parametrize("text", OPTION_FIELDS)
def test_lift_option_field_has_nft_name(text: str) -> None:
    kind, name, offset, length = OPTION_FIELDS[text]
    (match,) = lift(option(kind, name, offset, length), cmp(bytes(length)))
    assert isinstance(match, nft.Match) and nft_text.expression_text(match.left) == text


def test_lift_option_part_needs_all_its_bits() -> None:
    offset = nft.Option("exthdr", "frag", "frag-off")
    load, mask = option(0, 44, 2, 2), bitwise(b"\xff\xf8", bytes(2))
    assert lift(load, mask, cmp(b"\0\xb0")) == (nft.Match(offset, 22),)
    raw = nft.Bitwise(nft.Option("exthdr", "frag", "@16,16"), 0xFFF0)
    assert lift(load, bitwise(b"\xff\xf0", bytes(2)), cmp(b"\0\xb0")) == (nft.Match(raw, 0xB0),)
    with pytest.raises(ValueError):
        nft_text.expression_text(raw)


def test_lift_reset_of_a_part_of_an_option_is_unsupported() -> None:
    def reset(*parts: bytes) -> tuple[nft.Statement, ...]:
        return lift(expression("exthdr", number(2, 30, 1), *parts))

    whole = number(3, 0), number(4, 0), number(5, 0), number(6, 1)
    (statement,) = reset(*whole)
    assert statement == nft.Undecided(
        "reset tcp option mptcp", frozenset({"continue", "break", "drop"}), is_syntax=True
    )
    assert is_unsupported(reset(number(3, 1), *whole[1:]))
    assert is_unsupported(reset(*whole[:-1], number(6, 2)))


# --- maps --------------------------------------------------------------------------------------


def map_table(
    name: str, key_length: int, data_length: int, *elements: bytes, more: bytes = b"", flags: int = 9
) -> SetTable:
    parts = attribute(1, b"t\0"), attribute(2, name.encode() + b"\0"), number(3, flags), number(4, 7)
    lengths = number(5, key_length), number(6, 7), number(7, data_length)
    table = SetTable("little", {1: "lo"})
    contents = decode_elements([attribute(3, b"".join(attribute(1, each) for each in elements))])
    table.add(decode_set(b"".join((*parts, *lengths, more)))[1], contents)
    return table


SOURCE = payload(1, 12, 4)
TO_MAP = expression("lookup", attribute(1, b"s\0"), number(2, 1), number(3, 1))
KEY = bytes([192, 0, 2, 1])
LOW, HIGH = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 4])


def dnat(*registers: tuple[int, int], flags: int = 0) -> bytes:
    parts = [number(kind, register) for kind, register in registers]
    return expression("nat", number(1, 1), number(2, 2), *parts, number(7, flags))


def address_map(*entries: tuple[nft.Element, nft.Element]) -> nft.Lookup:
    return nft.Lookup(nft.Payload("ip", "saddr"), frozenset(entries))


def test_lift_nat_takes_interval_from_map() -> None:
    sets = map_table("s", 4, 8, element(KEY, data(2, LOW + HIGH)))
    found = lift(SOURCE, TO_MAP, dnat((3, 1), (4, 9), flags=1), family="ip", sets=sets)
    assert found == (nft.Dnat(None, address_map(("192.0.2.1", "10.0.0.2-10.0.0.4"))),)


def test_lift_nat_takes_address_and_ports_from_map() -> None:
    ports = b"\0\x50\0\0", b"\0\x5a\0\0"
    sets = map_table("s", 4, 16, element(KEY, data(2, LOW + ports[0] + HIGH + ports[1])))
    nat = dnat((3, 1), (4, 10), (5, 9), (6, 11), flags=3)
    found = lift(SOURCE, TO_MAP, nat, family="ip", sets=sets)
    assert found == (nft.Dnat(None, address_map(("192.0.2.1", ("10.0.0.2-10.0.0.4", "80-90")))),)


def test_lift_nat_with_swapped_registers_is_unsupported() -> None:
    sets = map_table("s", 4, 8, element(KEY, data(2, LOW + HIGH)))
    assert is_unsupported(lift(SOURCE, TO_MAP, dnat((3, 9), (4, 1)), family="ip", sets=sets))
    assert is_unsupported(lift(SOURCE, TO_MAP, dnat((3, 1), (4, 10)), family="ip", sets=sets))
    longer = map_table("s", 4, 12, element(KEY, data(2, LOW + HIGH + LOW)))
    assert is_unsupported(lift(SOURCE, TO_MAP, dnat((3, 1), (4, 9)), family="ip", sets=longer))


def test_lift_nat_of_networks_has_word_prefix() -> None:
    sets = map_table("s", 4, 8, element(KEY, data(2, bytes([10, 0, 0, 0]) + bytes([10, 0, 0, 255]))))
    (statement,) = lift(SOURCE, TO_MAP, dnat((3, 1), (4, 9), flags=65), family="ip", sets=sets)
    text = "dnat ip prefix to ip saddr map { 192.0.2.1 : 10.0.0.0/24 }"
    assert nft_text.statement_text(statement) == text


def test_lift_device_from_map_has_name() -> None:
    def copy(index: int) -> tuple[nft.Statement, ...]:
        sets = map_table("s", 4, 4, element(KEY, data(2, index.to_bytes(4, "little"))))
        return lift(SOURCE, TO_MAP, expression("dup", number(2, 1)), family="ip", sets=sets)

    assert copy(1) == (nft.Dup(address_map(("192.0.2.1", "lo"))),)
    assert is_unsupported(copy(7))  # no device


@pytest.mark.parametrize(
    ("kind", "text", "results"),
    [
        (1, "counter name", {"continue", "break"}),
        (3, "ct helper set", {"continue", "break"}),
        (10, "synproxy name", {"continue", "break", "drop"}),
    ],
)
def test_lift_object_by_map_has_its_results(kind: int, text: str, results: set[str]) -> None:
    entry = element(KEY, attribute(9, b"a\0"))
    sets = map_table("s", 4, 0, entry, more=number(15, kind))
    found = lift(SOURCE, expression("objref", number(3, 1), attribute(4, b"s\0")), family="ip", sets=sets)
    (statement,) = found
    assert isinstance(statement, nft.Undecided) and statement.results == results
    assert nft_text.statement_text(statement) == f'{text} ip saddr map {{ 192.0.2.1 : "a" }}'
    assert statement.needs_conntrack is (kind != 1)


def test_lift_tunnel_object_by_map_is_unsupported() -> None:
    sets = map_table("s", 4, 0, element(KEY, attribute(9, b"a\0")), more=number(15, 6))
    assert is_unsupported(
        lift(SOURCE, expression("objref", number(3, 1), attribute(4, b"s\0")), family="ip", sets=sets)
    )


def test_lookup_key_of_undecided_statement_may_need_conntrack() -> None:
    def needs(key: nft.Expression, of_statement: bool | None) -> bool | None:
        statement = nft.Undecided("counter name ...", needs_conntrack=of_statement, key=key)
        table = nft.Table("ip", "t", (nft.Chain("c", (nft.Rule((statement,)),)),))
        return needs_conntrack((table,), 4)

    own, flow = nft.Meta("mark"), nft.OpaqueExpression("jhash ct mark mod 2", nft.Ct("mark"))
    assert [needs(own, each) for each in (False, True, None)] == [False, True, None]
    assert [needs(flow, each) for each in (False, True, None)] == [True, True, True]


def test_lift_update_of_map_reads_its_data() -> None:
    sets = map_table("s", 4, 4, flags=8)
    ct = expression("ct", number(1, 9), number(2, CT_MARK))

    def update(register: int) -> bytes:
        return expression("dynset", attribute(1, b"s\0"), number(3, 1), number(4, 1), number(5, register))

    (statement,) = lift(SOURCE, ct, update(9), family="ip", sets=sets)
    assert statement == nft.SetUpdate("update", "s", nft.Payload("ip", "saddr"), data=nft.Ct("mark"))
    constant = expression("immediate", number(1, 9), data(2, KEY))
    (statement,) = lift(SOURCE, constant, update(9), family="ip", sets=sets)
    assert statement == nft.SetUpdate("update", "s", nft.Payload("ip", "saddr"), data="192.0.2.1")
    assert is_unsupported(lift(SOURCE, ct, update(10), family="ip", sets=sets))


def test_lift_shift_of_a_network_number_is_unsupported() -> None:
    """nft 1.1.3 writes `frag frag-off { 33-45, 50 }` so: on a little-endian machine that is not the offset."""
    load, mask = option(0, 44, 2, 2), bitwise(b"\xff\xf8", bytes(2))
    assert is_unsupported(lift(load, mask, shift(RIGHT, 3, 2), cmp(b"\0\x16")))


# --- other statements ------------------------------------------------------------------------------


def test_lift_reject_without_family_is_of_both() -> None:
    refuse = expression("reject", number(1, 0), number(2, 3, 1))
    assert lift(refuse) == (nft.Reject("unreach", 3),)
    with pytest.raises(ValueError):
        nft_text.rule_text(nft.Rule((nft.Reject("unreach", 3),)))
    assert lift(refuse, family="ip") == (nft.Reject("icmp", "port-unreachable"),)


def test_reject_behind_frame_type_is_written_for_its_family() -> None:
    is_ethernet, frame_type = nft.Match(nft.Meta("iiftype"), 1), nft.Payload("ether", "type")
    rule = nft.Rule((is_ethernet, nft.Match(frame_type, "ip6"), nft.Reject("unreach", 4)))
    assert nft_text.rule_text(rule) == "ether type 0x86dd reject with icmpv6 type 4"
    with pytest.raises(ValueError):
        nft_text.rule_text(nft.Rule((is_ethernet, nft.Match(frame_type, "ip6", "!="), nft.Reject("unreach", 4))))


def test_lift_synproxy_value_without_flag_is_unsupported() -> None:
    assert is_unsupported(lift(expression("synproxy", number(1, 1460, 2), number(2, 7, 1), number(3, 2))))
    assert is_unsupported(lift(expression("synproxy", number(3, 64))))
    (statement,) = lift(expression("synproxy", number(1, 1460, 2), number(2, 7, 1), number(3, 3)))
    assert nft_text.statement_text(statement) == "synproxy mss 1460 wscale 7"


def test_lift_hash_reads_its_key() -> None:
    ct = expression("ct", number(1, 1), number(2, CT_MARK))
    jhash = expression("hash", number(1, 1), number(2, 1), number(3, 4), number(4, 2), number(7, 0))
    (statement,) = lift(ct, jhash, SET_MARK)
    key = nft.Ct("mark")
    assert statement == nft.Mangle(nft.Meta("mark"), nft.OpaqueExpression("jhash ct mark mod 2", key))
    assert is_unsupported(lift(ct, jhash, verdict(0)))  # the rule ends where there is no connection


def test_lift_hash_of_packet_with_key_is_unsupported() -> None:
    assert is_unsupported(
        lift(expression("hash", number(1, 1), number(2, 1), number(3, 4), number(4, 2), number(7, 1)))
    )


@pytest.mark.parametrize(
    ("time", "value"), [(30_000, 30), (1_500, "1500ms"), (0, 0)], ids=["seconds", "milliseconds", "zero"]
)
def test_lift_expiration_is_in_seconds(time: int, value: nft.Value) -> None:
    load = expression("ct", number(1, 1), number(2, 5))
    assert lift(load, cmp(time.to_bytes(4, "little"))) == (nft.Match(nft.Ct("expiration"), value),)


def test_lift_time_below_a_second_has_no_text() -> None:
    whole, part = ((10**9 * 5 + more).to_bytes(8, "little") for more in (0, 1))
    (match,) = lift(meta(30), cmp(whole))
    assert nft_text.statement_text(match) == "meta time 5"
    (match,) = lift(meta(30), cmp(part))
    with pytest.raises(ValueError):
        nft_text.statement_text(match)


def test_lift_inner_load_is_a_test_only() -> None:
    def inner(name: str, *parts: bytes) -> bytes:
        inside = attribute(5, expression(name, *parts))
        return expression("inner", number(1, 0), number(2, 1), number(3, 15), number(4, 8), inside)

    address = inner("payload", number(1, 1), number(2, 1), number(3, 12), number(4, 4))
    (match, drop) = lift(address, cmp(KEY), verdict(0))
    assert isinstance(match, nft.Match) and isinstance(match.left, nft.UnknownExpression) and drop == nft.DROP
    assert isinstance(lift(address, verdict(0))[0], nft.UnknownStatement)  # it can end the rule
    (match, *_) = lift(inner("novel", number(1, 1)), cmp(KEY))
    assert isinstance(match, nft.Match) and isinstance(match.left, nft.UnknownExpression)


def test_set_that_only_rules_fill_has_columns_of_rule() -> None:
    table = set_table(key_type=0x109, key_length=12)
    update = expression("dynset", attribute(1, b"s\0"), number(3, 0), number(4, 1))
    vlan, source = payload(0, 14, 2), payload(0, 6, 6, register=9)
    lift(vlan, source, update, sets=table)
    ((named,), _, unsupported) = table.named()
    assert (named.type, unsupported) == (("integer", "ether_addr"), ())
