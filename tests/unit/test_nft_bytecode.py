"""The ruleset of the kernel, decoded from recorded netlink messages: every test stays, nothing is lost."""

import struct

import pytest
from attrs import evolve

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats.nft_bytecode.attributes import (
    Attributes,
    UnsupportedBytecode,
    split_attributes,
    split_list,
)
from nftpolicy.netstate.formats.nft_bytecode.chains import decode_chain, decode_object, decode_table
from nftpolicy.netstate.formats.nft_bytecode.elements import decode_elements, repeats_element
from nftpolicy.netstate.formats.nft_bytecode.expressions import decode_operation
from nftpolicy.netstate.formats.nft_bytecode.rule_state import RuleContext, RuleState
from nftpolicy.netstate.formats.nft_bytecode.rules import RawRule, RuleLifter, decode_rule
from nftpolicy.netstate.formats.nft_bytecode.ruleset import RulesetMessages, UnreadableRuleset, decode_ruleset
from nftpolicy.netstate.formats.nft_bytecode.sets import SetTable, decode_set
from nftpolicy.netstate.formats.nft_bytecode.tests import usual_cmp
from tests.nft_messages import RECORDINGS, describe, lifted, recorded

MESSAGES = recorded()
ACCEPT, DROP = 1, 0


# --- builders of messages ---------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int, size: int = 4) -> bytes:
    return attribute(kind, value.to_bytes(size, "big"))


def expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, name.encode() + b"\0") + attribute(2, b"".join(attributes))


def data(kind: int, raw: bytes) -> bytes:
    return attribute(kind, attribute(1, raw))


def verdict(code: int) -> bytes:
    return expression("immediate", number(1, 0), attribute(2, attribute(2, number(1, code))))


def meta(key: int, register: int = 1) -> bytes:
    return expression("meta", number(1, register), number(2, key))


def payload(base: int, offset: int, length: int, register: int = 1) -> bytes:
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def cmp(raw: bytes, op: int = 0, register: int = 1) -> bytes:
    return expression("cmp", number(1, register), number(2, op), data(3, raw))


def bitwise(mask: bytes, flip: bytes, register: int = 1) -> bytes:
    parts = number(1, register), number(2, register), number(3, len(mask)), data(4, mask), data(5, flip)
    return expression("bitwise", *parts)


NFPROTO, L4PROTO, MARK, OIFNAME = 15, 16, 3, 7
IPV6_ICMP = (meta(NFPROTO), cmp(b"\x0a"), meta(L4PROTO), cmp(b"\x3a"))
ECHO = (payload(2, 0, 1), cmp(b"\x80"))


def undecoded_xt(
    kind: str, name: str, revision: int, info: bytes, family: str, byteorder: str
) -> tuple[nft.Statement, ...]:
    return (nft.UnknownStatement(f"xt {kind} {name} revision {revision} {info.hex()}"),)


def lift(*expressions: bytes, family: str = "inet", sets: SetTable | None = None) -> tuple[nft.Statement, ...]:
    context = RuleContext(family, sets or SetTable("little"), {2: "wan"}, "little", undecoded_xt)
    return RuleLifter().lift(RawRule("t", "c", expressions, None), context).statements


# --- recorded messages -------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_ruleset_is_lifted_to_recorded_text(name: str) -> None:
    assert describe(decode_ruleset(recorded(name))) == lifted(name)


def test_decode_message_of_unknown_table_raises() -> None:
    with pytest.raises(UnreadableRuleset):
        decode_ruleset(RulesetMessages(rules=MESSAGES.rules))


# --- implied tests -----------------------------------------------------------------------


def test_lift_field_has_name_only_after_tests() -> None:
    named, raw = nft.Payload("icmpv6", "type"), nft.RawPayload("th", 0, 8)
    assert lift(*IPV6_ICMP, *ECHO)[-1] == nft.Match(named, "echo-request")
    assert lift(*IPV6_ICMP[2:], *ECHO)[-1] == nft.Match(raw, 128)
    assert lift(*IPV6_ICMP[:2], *ECHO)[-1] == nft.Match(raw, 128)
    assert lift(*ECHO)[-1] == nft.Match(raw, 128)


def test_lift_network_field_without_test_is_raw() -> None:
    source = (payload(1, 12, 4), cmp(b"\xc0\0\2\1"))
    assert lift(*source) == (nft.Match(nft.RawPayload("nh", 96, 32), 0xC0000201),)
    assert lift(*source, family="ip") == (nft.Match(nft.Payload("ip", "saddr"), "192.0.2.1"),)
    part = nft.Bitwise(nft.Payload("ip6", "saddr"), "0:0:ffff:ffff::")
    assert lift(*source, family="ip6") == (nft.Match(part, "0:0:c000:201::"),)


def test_lift_repeats_tests_of_other_facts_anew() -> None:
    lifter, context = RuleLifter(), RuleContext("inet", SetTable("little"), {}, "little", undecoded_xt)
    rules = [(*IPV6_ICMP, *ECHO), ECHO, (*IPV6_ICMP, *ECHO)]
    lifted = [lifter.lift(RawRule("t", "c", each, None), context).statements[-1] for each in rules]
    named = nft.Match(nft.Payload("icmpv6", "type"), "echo-request")
    assert lifted == [named, nft.Match(nft.RawPayload("th", 0, 8), 128), named]


def test_lift_test_with_another_constant_is_as_alone() -> None:
    constants = {meta(MARK): 4, meta(L4PROTO): 1, meta(NFPROTO): 1, meta(OIFNAME): 16, meta(4): 4}
    constants |= {payload(1, 9, 1): 1, payload(1, 12, 4): 4, payload(1, 12, 8): 8, payload(2, 2, 2): 2}
    constants |= {payload(2, 0, 1): 1, payload(2, 13, 1): 1}
    lifter = RuleLifter()
    for load, size in constants.items():
        for op in range(6):
            for first in (0, 1, 2, 6, 10, 58, 255):
                test = load, cmp(bytes([first]).ljust(size, b"\0"), op), *ECHO, verdict(DROP)
                for family in ("ip", "inet"):
                    context = RuleContext(family, SetTable("little"), {2: "wan"}, "little", undecoded_xt)
                    lifted = lifter.lift(RawRule("t", "c", test, None), context).statements
                    assert lifted == lift(*test, family=family), (load, op, first)


def test_lift_known_test_behind_end_of_rule_is_unsupported() -> None:
    address = expression("immediate", number(1, 2), data(2, bytes([192, 0, 2, 1])))
    nat = expression("nat", number(1, 1), number(2, 2), number(3, 2))
    lifter, context = RuleLifter(), RuleContext("inet", SetTable("little"), {}, "little", undecoded_xt)
    known = meta(MARK), cmp(b"\1\0\0\0")
    lifted = [lifter.lift(RawRule("t", "c", each, None), context) for each in (known, (address, nat, *known))]
    assert isinstance(lifted[1].statements[1], nft.UnknownStatement)


def test_lift_field_never_has_a_longer_value() -> None:
    shift = expression("bitwise", number(1, 1), number(2, 1), number(3, 1), number(6, 2), data(7, b"\4\0\0\0"))
    version = payload(1, 0, 1), bitwise(b"\xf0", b"\0"), shift
    assert lift(*version, cmp(b"\4"), family="ip") == (nft.Match(nft.Payload("ip", "version"), 4),)
    assert lift(*version, cmp(b"\x45"), family="ip") == (nft.Match(nft.RawPayload("nh", 0, 4), 0x45),)


def test_lift_known_test_with_more_bytes_is_unsupported() -> None:
    lifter, context = RuleLifter(), RuleContext("ip", SetTable("little"), {}, "little", undecoded_xt)
    usual = cmp(b"\xc0\0\2\1")
    lifted = [
        lifter.lift(RawRule("t", "c", (payload(1, 12, 4), comparison), None), context).statements
        for comparison in (usual, usual, usual + number(9, 1))
    ]
    known = (nft.Match(nft.Payload("ip", "saddr"), "192.0.2.1"),)
    assert lifted[:2] == [known, known]
    assert any(isinstance(statement, nft.UnknownStatement) for statement in lifted[2])


def test_lift_mask_belongs_to_its_own_load() -> None:
    lifter, context = RuleLifter(), RuleContext("inet", SetTable("little"), {}, "little", undecoded_xt)
    tail = bitwise(b"\1\0\0\0", bytes(4)), cmp(b"\1\0\0\0")
    ct_mark = expression("ct", number(1, 1), number(2, 3))
    for load, key in ((meta(MARK), nft.Meta("mark")), (ct_mark, nft.Ct("mark")), (meta(MARK), nft.Meta("mark"))):
        rule = lifter.lift(RawRule("t", "c", (load, *tail), None), context)
        assert rule.statements == (nft.Match(nft.Bitwise(key, 1), 1),)


def test_lift_adjacent_fields_are_separate_tests() -> None:
    both = lift(payload(1, 12, 8), cmp(bytes([192, 0, 2, 1, 192, 0, 2, 2])), family="ip")
    assert both == (
        nft.Match(nft.Payload("ip", "saddr"), "192.0.2.1"),
        nft.Match(nft.Payload("ip", "daddr"), "192.0.2.2"),
    )
    negated = lift(payload(1, 12, 8), cmp(bytes(8), op=1), family="ip")
    assert negated == (nft.Match(nft.RawPayload("nh", 96, 64), 0, "!="),)


def test_lift_first_bytes_of_address_are_a_prefix() -> None:
    assert lift(payload(1, 8, 8), cmp(bytes(8)), family="ip6") == (nft.Match(nft.Payload("ip6", "saddr"), "::/64"),)


def test_lift_load_without_test_is_unsupported() -> None:
    statements = lift(payload(2, 0, 2), verdict(DROP))
    assert isinstance(statements[0], nft.UnknownStatement) and statements[1] == nft.DROP
    assert lift(meta(MARK), verdict(DROP)) == (nft.DROP,)  # every packet has a mark


def test_lift_register_is_unknown_after_failed_load() -> None:
    statements = lift(meta(MARK), meta(99), cmp(b"\1\0\0\0"), verdict(ACCEPT))
    assert [type(each.left) for each in statements[:-1] if isinstance(each, nft.Match)] == [nft.UnknownExpression] * 2


def test_lift_register_is_unknown_after_write() -> None:
    constant = expression("immediate", number(1, 9), data(2, b"\1\0\0\0"))
    write = expression("meta", number(2, MARK), number(3, 9))
    statements = lift(meta(MARK), cmp(b"\1\0\0\0"), constant, write, cmp(b"\1\0\0\0"))
    assert statements[1] == nft.Mangle(nft.Meta("mark"), 1)
    assert isinstance(statements[2], nft.Match) and isinstance(statements[2].left, nft.UnknownExpression)


def test_lift_order_of_native_numbers_is_unsupported() -> None:
    (match,) = lift(meta(MARK), cmp(b"\1\0\0\0", op=4))
    assert isinstance(match, nft.Match) and isinstance(match.left, nft.UnknownExpression)


def test_lift_unknown_expression_is_kept_as_text() -> None:
    (statement,) = lift(expression("novel", number(1, 7)))
    assert statement == nft.UnknownStatement("[ novel 1=00000007 ] (an unknown expression)")


def test_lift_counter_values_have_no_meaning() -> None:
    lifter, context = RuleLifter(), RuleContext("ip", SetTable("little"), {}, "little", undecoded_xt)

    def lifted(*attributes: bytes) -> tuple[nft.Statement, ...]:
        return lifter.lift(RawRule("t", "c", (expression("counter", *attributes),), None), context).statements

    for packets in (0, 1, 1 << 40):
        assert lifted(number(1, 7 * packets, 8), number(2, packets, 8)) == (nft.Counter(),)
    for others in (
        (number(1, 1, 8), number(9, 1, 8)),  # an unknown attribute, of the same size or elsewhere
        (number(9, 1, 8), number(2, 1, 8)),
        (number(1, 1), number(9, 1), number(2, 1)),
        (number(9, 1, 20),),
        (number(1, 1, 8), number(2, 1, 8), number(9, 1)),  # longer than a counter
    ):
        assert isinstance(lifted(*others)[0], nft.UnknownStatement)


def test_lift_wildcard_ends_in_asterisk() -> None:
    assert lift(meta(OIFNAME), cmp(b"wan")) == (nft.Match(nft.Meta("oifname"), "wan*"),)
    assert lift(meta(OIFNAME), cmp(b"wan".ljust(16, b"\0"))) == (nft.Match(nft.Meta("oifname"), "wan"),)


def test_lift_statement_behind_nat_of_one_family_is_unsupported() -> None:
    address = expression("immediate", number(1, 1), data(2, bytes([192, 0, 2, 1])))
    nat = expression("nat", number(1, 1), number(2, 2), number(3, 1))
    assert lift(address, nat) == (nft.Dnat("ip", "192.0.2.1"),)
    assert isinstance(lift(address, nat, verdict(ACCEPT))[1], nft.UnknownStatement)
    assert lift(meta(NFPROTO), cmp(b"\2"), address, nat, verdict(ACCEPT))[1:] == (
        nft.Dnat("ip", "192.0.2.1"),
        nft.ACCEPT,
    )


def test_lift_write_with_foreign_checksum_is_unsupported() -> None:
    def write(offset: int) -> tuple[nft.Statement, ...]:
        constant = expression("immediate", number(1, 1), data(2, bytes([192, 0, 2, 1])))
        parts = number(2, 1), number(3, 12), number(4, 4), number(5, 1), number(6, 1), number(7, offset)
        return lift(constant, expression("payload", *parts), family="ip")

    assert write(10) == (nft.Mangle(nft.Payload("ip", "saddr"), "192.0.2.1"),)
    assert isinstance(write(16)[0], nft.UnknownStatement)


# --- sets ----------------------------------------------------------------------------------


def set_table(*elements: bytes, flags: int = 0, key_type: int = 7, key_length: int = 4) -> SetTable:
    header = b"".join(
        (attribute(1, b"t\0"), attribute(2, b"s\0"), number(3, flags), number(4, key_type), number(5, key_length))
    )
    table = SetTable("little")
    table.add(decode_set(header)[1], decode_elements([attribute(3, b"".join(attribute(1, each) for each in elements))]))
    return table


def element(raw: bytes, *attributes: bytes) -> bytes:
    return data(1, raw) + b"".join(attributes)


ADDRESS = element(bytes([192, 0, 2, 1]))
LOOKUP = expression("lookup", attribute(1, b"s\0"), number(2, 1))
IS_IN_SET = (payload(1, 16, 4), LOOKUP)


def test_set_elements_are_decoded_by_expression() -> None:
    table = set_table(ADDRESS, key_type=19)  # nft's type says mark
    assert lift(*IS_IN_SET, family="ip", sets=table) == (nft.Match(nft.Payload("ip", "daddr"), nft.SetRef("s")),)
    ((named,), _, unsupported) = table.named()
    assert (named.type, named.elements, unsupported) == (("ipv4_addr",), frozenset({"192.0.2.1"}), ())


def test_set_with_two_meanings_is_unsupported() -> None:
    table = set_table(ADDRESS)
    lift(*IS_IN_SET, family="ip", sets=table)
    (match,) = lift(meta(MARK), LOOKUP, sets=table)
    assert isinstance(match, nft.Match) and isinstance(match.left, nft.UnknownExpression)


@pytest.mark.parametrize(("statement", "is_known"), [("counter", True), ("limit", False), ("quota", False)])
def test_set_element_statement_is_not_lost(statement: str, is_known: bool) -> None:
    table = set_table(ADDRESS + attribute(7, expression(statement)))
    (match,) = lift(*IS_IN_SET, family="ip", sets=table)
    assert isinstance(match, nft.Match) and (match.right == nft.SetRef("s")) == is_known
    assert (table.named()[2] == ()) == is_known


def test_set_interval_lasts_to_next_element() -> None:
    end = number(3, 1)
    parts = [element(b"\0\x05"), element(b"\0\x07", end), element(b"\0\x09"), element(b"\0\x0a"), element(b"\xff\0")]
    table = set_table(*parts, flags=4, key_type=13, key_length=2)
    ((named,), _, _) = table.named()
    assert named.elements == frozenset({"5-6", 9, "10-65279", "65280-65535"})


def test_set_updated_by_a_rule_is_dynamic() -> None:
    table = set_table(ADDRESS)
    update = expression("dynset", attribute(1, b"s\0"), number(3, 0), number(4, 1))
    assert lift(payload(1, 16, 4), update, family="ip", sets=table) == (
        nft.SetUpdate("add", "s", nft.Payload("ip", "daddr")),
    )
    assert table.named()[0][0].flags == frozenset({"dynamic"})


def test_set_dump_with_repeated_element_is_noticed() -> None:
    once, twice = (attribute(3, b"".join(attribute(1, each) for each in parts)) for parts in ([ADDRESS], [ADDRESS] * 2))
    assert not repeats_element([once]) and repeats_element([twice]) and repeats_element([once, once])
    other = attribute(3, attribute(1, ADDRESS) + attribute(1, element(b"\0\1\2\3", number(3, 1))))
    assert repeats_element([once, other])


def test_set_of_keys_alone_equals_its_elements() -> None:
    keys = [bytes([10, 0, number >> 8, number & 255]) for number in range(300)]
    packed = set_table(*map(element, keys))
    apart = set_table(*map(element, keys), element(keys[0], attribute(6, b"")))
    assert packed.named() == apart.named()
    assert len(packed.named()[0][0].elements) == 300


@pytest.mark.parametrize(
    "raw",
    [
        attribute(1, ADDRESS) + attribute(2, ADDRESS),  # a list with another attribute
        attribute(2, ADDRESS) * 2,
        attribute(1, ADDRESS) + attribute(1, data(12, b"\1\2\3\4")),  # an element without a key
        attribute(1, data(12, b"\1\2\3\4")) * 2,
        attribute(1, ADDRESS) + attribute(1, attribute(1, attribute(2, b"\1\2\3\4"))),  # a key that is a verdict
        attribute(1, attribute(1, attribute(2, b"\1\2\3\4"))) * 2,
        attribute(1, attribute(1, b"\1\2\3\4")) * 2,  # a key without a value in it
    ],
)
def test_elements_of_another_layout_are_unsupported(raw: bytes) -> None:
    with pytest.raises(UnsupportedBytecode):
        decode_elements([attribute(3, raw)])


def test_set_with_bytes_between_columns_is_unsupported() -> None:
    port_and_address = element(b"\0\x35\0\0" + bytes(4)), element(b"\0\x35\0\1" + bytes(4))
    clean, dirty = (set_table(each, key_type=13 << 6 | 7, key_length=8) for each in port_and_address)
    assert clean.named()[0][0].elements == frozenset({(53, "0.0.0.0")})
    assert dirty.named()[0] == () and "bytes between its parts" in dirty.named()[2][0]


# --- chains and tables -----------------------------------------------------------------------


def chain(*hook: bytes) -> nft.Hook | None:
    raw = attribute(1, b"t\0") + attribute(3, b"c\0") + number(10, 1) + number(5, 0) + attribute(7, b"filter\0")
    return decode_chain(raw + attribute(4, b"".join((number(1, 1), number(2, 0), *hook))), "netdev").chain.hook


def test_chain_devices_are_names_and_prefixes() -> None:
    wan, mesh, prefix = attribute(1, b"wan\0"), attribute(1, b"mesh\0"), attribute(2, b"eth\0")
    hooks = [
        chain(attribute(3, b"wan\0"), attribute(4, wan)),
        chain(attribute(4, wan + mesh)),
        chain(attribute(4, prefix)),
    ]
    assert [hook and (hook.device, hook.devices) for hook in hooks] == [
        ("wan", frozenset()),
        (None, frozenset({"wan", "mesh"})),
        ("eth*", frozenset()),
    ]


def test_table_flag_without_name_is_kept() -> None:
    assert decode_table(attribute(1, b"t\0") + number(2, 1)) == ("t", frozenset({"dormant"}))
    assert decode_table(attribute(1, b"t\0") + number(2, 9)) == ("t", frozenset({"unnamed"}))


def test_rule_with_unknown_attribute_is_unsupported() -> None:
    *others, (family, last) = MESSAGES.rules
    changed = evolve(MESSAGES, rules=(*others, (family, last + number(60, 1))))
    before, after = decode_ruleset(MESSAGES), decode_ruleset(changed)
    new = [
        (rule, previous)
        for table, old in zip(after, before, strict=True)
        for chain, former in zip(table.chains, old.chains, strict=True)
        for rule, previous in zip(chain.rules, former.rules, strict=True)
        if rule != previous
    ]
    assert [rule.statements for rule, _ in new] == [
        (nft.UnknownStatement("a rule with unknown attributes 60=00000001"),)
    ]


def test_set_with_unknown_attribute_is_unsupported() -> None:
    (first, *others) = MESSAGES.sets
    (table, *_) = decode_ruleset(evolve(MESSAGES, sets=((first[0], first[1] + number(60, 1)), *others)))
    assert any("unknown attributes 60" in text for text in table.unknown)
    assert not any(named.name == "s" for named in table.sets)


@pytest.mark.parametrize(
    "test",
    [
        (meta(NFPROTO), cmp(b"\4")),  # no family
        (meta(OIFNAME), cmp(b"wan".ljust(16, b"\0"), op=2)),  # an order of names
        (meta(4), cmp(b"\x63\0\0\0")),  # index of no device
        (expression("fib", number(1, 1), number(2, 2), number(3, 2)), cmp(b"wan")),  # a wildcard of the FIB's device
    ],
)
def test_lift_meaningless_test_is_uncertain(test: tuple[bytes, ...]) -> None:
    (match,) = lift(*test)
    assert isinstance(match, nft.Match) and isinstance(match.left, nft.UnknownExpression)


# --- closed world ------------------------------------------------------------------------------


def recorded_expressions() -> dict[str, list[bytes]]:
    """Return the recorded expressions by name."""
    by_name: dict[str, list[bytes]] = {}
    for _, raw in (message for name in RECORDINGS for message in recorded(name).rules):
        for each in decode_rule(raw).expressions:
            name = each[4 : each.index(b"\0", 4)].decode()
            by_name.setdefault(name, []).append(each)
    return by_name


EXPRESSIONS = recorded_expressions()


def body_of(raw: bytes) -> dict[int, bytes]:
    """Return the attributes of an expression, without its name."""
    return dict(split_attributes(dict(split_attributes(raw)).get(2, b"")))


@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_expression_with_unknown_attribute_is_unsupported(name: str) -> None:
    for raw in EXPRESSIONS[name]:
        decode_operation(raw)
        body = [attribute(kind, value) for kind, value in body_of(raw).items()]
        with pytest.raises(UnsupportedBytecode, match="unknown attributes 60"):
            decode_operation(expression(name, *body, number(60, 1)))


@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_expression_with_forgotten_attribute_is_unsupported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attribute of an expression is consumed: a decoder that forgets one refuses the expression."""
    take = Attributes.take
    for raw in EXPRESSIONS[name]:
        for forgotten, value in body_of(raw).items():

            def read(self: Attributes, kind: int, forgotten: int = forgotten, value: bytes = value) -> bytes | None:
                if kind == forgotten and self._remaining.get(kind) == value:
                    return value  # as if the decoder had not looked at it
                return take(self, kind)

            with monkeypatch.context() as patch, pytest.raises(UnsupportedBytecode, match="unknown attributes"):
                patch.setattr(Attributes, "take", read)
                decode_operation(raw)


def test_usual_comparison_is_decoded_as_any() -> None:
    """The quick way refuses whatever differs from the layout in one byte, or gives what the other way gives."""

    def state_after(operation: object) -> list[object]:
        state = RuleState(RuleContext("inet", SetTable("little"), {}, "little", undecoded_xt))
        decode_operation(meta(OIFNAME))(state)
        try:
            operation(state)  # type: ignore[operator]
        except UnsupportedBytecode as reason:
            return [str(reason)]
        return list(state.statements)

    raw = cmp(b"wan".ljust(16, b"\0"))
    assert usual_cmp(raw) is not None and usual_cmp(raw + bytes(4)) is None and usual_cmp(raw[:-4]) is None
    for offset in range(len(raw)):
        for byte in {0, 1, 2, 3, 8, 16, 24, 64, 128, raw[offset] ^ 1}:
            changed = raw[:offset] + bytes([byte]) + raw[offset + 1 :]
            quick = usual_cmp(changed)
            if quick is not None:
                assert state_after(quick) == state_after(decode_operation(changed)), (offset, byte)


@pytest.mark.parametrize("decoder", [decode_table, decode_set, decode_rule, decode_object])
def test_message_with_unknown_attribute_is_refused(decoder: object) -> None:
    messages = {
        decode_table: MESSAGES.tables,
        decode_set: MESSAGES.sets,
        decode_rule: MESSAGES.rules,
        decode_object: MESSAGES.objects,
    }[decoder]  # type: ignore[index]
    for _, raw in messages:
        decoder(raw)  # type: ignore[operator]
        with pytest.raises(UnsupportedBytecode):
            decoder(raw + number(60, 1))  # type: ignore[operator]


@pytest.mark.parametrize("raw", [b"\3\0\1\0", b"\x08\0\1\0", b"\4\0\1", number(1, 1) + number(1, 1)])
def test_malformed_attributes_are_refused(raw: bytes) -> None:
    with pytest.raises(UnsupportedBytecode):
        Attributes(raw)


def test_list_with_other_attribute_is_refused() -> None:
    with pytest.raises(UnsupportedBytecode):
        split_list(attribute(2, b""))
