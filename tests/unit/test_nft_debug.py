"""The text of `nft --debug=netlink`: what it shows is read as the kernel's messages are, the rest is unsupported."""

import re

import pytest

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.nft_bytecode.ruleset import decode_ruleset
from nftpolicy.netstate.formats.nft_bytecode.values import Kind
from nftpolicy.netstate.formats.nft_debug.listing import DebugOutputError
from nftpolicy.netstate.formats.nft_debug.rule_program import (
    RuleEncoder,
    SetUses,
    Slot,
    compared_length,
    read_listing,
    unsupported,
)
from nftpolicy.netstate.formats.nft_debug.ruleset import decode_debug_output
from nftpolicy.netstate.formats.xt_decode import decode_named_xt
from tests.debug_output import more_known
from tests.nft_messages import DIRECTORY, recorded

DEBUG = DIRECTORY / "debug.txt"
DEVICES = recorded().devices
# Rules of the recorded ruleset whose text leaves something out.
LESS_KNOWN = ("ct original ip saddr 1.2.3.0/24", "snat ip prefix to ip saddr map")


def decode(text: str, byte_order: str = "little") -> tuple[nft.Table, ...]:
    return decode_debug_output(text.split("\n"), DEVICES, byte_order)


def rule_text(program: str, listed: str, byte_order: str = "little") -> str:
    """Return the only rule of a chain with this program and listing, as text."""
    lines = "".join(f"  [ {line.strip()} ]\n" for line in program.strip().split("\n"))
    text = (
        f"inet t c 2\n{lines}\ntable inet t {{ # handle 1\n\tchain c {{ # handle 1\n\t\t{listed} # handle 2\n\t}}\n}}\n"
    )
    ((table,),) = [decode(text, byte_order)]
    ((rule,),) = [chain.rules for chain in table.chains]
    return nft_text.display_text(rule)


def test_recorded_output_shows_no_more_than_messages():
    executed, shown = decode_ruleset(recorded()), decode(DEBUG.read_text())
    assert more_known(executed, shown) == []


def test_recorded_output_shows_nearly_all_rules():
    executed, shown = decode_ruleset(recorded()), decode(DEBUG.read_text())
    different = [
        nft_text.display_text(rule)
        for table, other in zip(executed, shown, strict=True)
        for chain, other_chain in zip(table.chains, other.chains, strict=True)
        for rule, other_rule in zip(chain.rules, other_chain.rules, strict=True)
        if rule.statements != other_rule.statements
    ]
    assert len(different) == len(LESS_KNOWN)
    assert all(any(part in text for text in different) for part in LESS_KNOWN)


_EXPRESSION = re.compile(r"  \[ (\w+) (.*)\]")
# The words that follow these are names, or values that change nothing: counters, texts, used quotas.
_FREE = ("set", "name", "->", "flowtable", "pkts", "bytes", "prefix", "consumed")


def encoded(lines: list[str]) -> list[bytes]:
    program = RuleEncoder("inet", "little", DEVICES, SetUses(), None)
    for line in lines:
        program.add(*_EXPRESSION.fullmatch(line).groups())
    return program.encoded


def test_unknown_word_of_an_expression_is_never_ignored():
    blocks = re.findall(r"(?:^  \[ .*\]\n)+", DEBUG.read_text(), re.MULTILINE)
    ignored = []
    for lines in {tuple(block.strip("\n").split("\n")) for block in blocks}:
        original = encoded(list(lines))
        for index, line in enumerate(lines):
            words = line.split(" ")
            for place in range(4, len(words) - 1):
                changed = " ".join([*words[:place], "zz", *words[place + 1 :]])
                if words[place - 1] in _FREE or (words[3] == "log" and "prefix" in words):
                    continue
                (name, arguments) = _EXPRESSION.fullmatch(changed).groups()
                if encoded([*lines[:index], changed])[index] != unsupported(name, arguments):
                    ignored.append(changed)
        assert not any(each.startswith(b"zz") for each in original)
    assert ignored == []


def test_missing_word_of_an_expression_is_never_ignored():
    blocks = re.findall(r"(?:^  \[ .*\]\n)+", DEBUG.read_text(), re.MULTILINE)
    ignored = []
    for lines in {tuple(block.strip("\n").split("\n")) for block in blocks}:
        original = encoded(list(lines))
        for index, line in enumerate(lines):
            words = line.split(" ")
            for place in range(4, len(words) - 1):
                shorter = " ".join([*words[:place], *words[place + 1 :]])
                if encoded([*lines[:index], shorter])[index] == original[index] and words[place] != "0x0":
                    ignored.append((words[place], line))
    assert ignored == []


@pytest.mark.parametrize("line", ["  [ immediate reg 0 accept ]", "  [ lookup reg 1 set __set0 0x0 ]"])
def test_missing_expression_is_another_rule(line):
    text = DEBUG.read_text()
    assert line in text
    assert decode(text.replace(line + "\n", "", 1)) != decode(text)


@pytest.mark.parametrize(
    ("raw", "slot", "listed", "length"),
    [
        (b"\x01\0\0\0", Slot(4, Kind.MARK), "meta mark 0x00000001", 4),
        (b"\x01\0\0\0", Slot(4, Kind.MARK), "meta mark 0x00000001/8", None),
        (b"\x06\0\0\0", Slot(1, Kind.PROTOCOL), "", 1),
        (b"\x06\x01\0\0", Slot(1, Kind.PROTOCOL), "", None),  # never equal: a shape that nft does not make
        (b"\x0a\0\0\0", Slot(4, Kind.IPV4), "ct original ip saddr 10.0.0.0/8", None),
        (b"\x0a\0\0\0", Slot(4, Kind.IPV4), "ct original ip saddr 10.0.0.0", 4),
        (b"\x0a\0\0\0", Slot(4, Kind.IPV4), "ct original ip saddr 10.0.0.0 ip saddr { 10.0.0.0/8 }", 4),
        (b"\x0a\x01\x02\x03", Slot(4, Kind.IPV4), "ct original ip saddr 10.1.2.3/8", 4),
        (b"\xfe\x80\0\0\0\0\0\0", Slot(16, Kind.IPV6), "ct original ip6 saddr fe80::/64", 8),
        (b"\xfe\x80\0\0\0\0\0\0", Slot(16, Kind.IPV6), "ct original ip6 saddr fe80::", None),
        (b"lo\0\0", Slot(16, Kind.DEVICE), 'iifname "lo*"', 2),
        (b"lo\0\0", Slot(16, Kind.DEVICE), 'iifname "lo"', 4),
        (b"lo\0\0", Slot(16, Kind.DEVICE), 'iifname "lo*" oifname "lo"', None),
        (b"lo\0\0", Slot(16, Kind.DEVICE), 'iifname "wan"', None),
        (b"wlan", Slot(16, Kind.DEVICE), 'iifname "wlan*"', 4),
        (b"eth0".ljust(16, b"\0"), Slot(16, Kind.DEVICE), 'iifname "eth0"', 16),
        (b"abcdefghijklm\0\0\0", Slot(16, Kind.DEVICE), 'iifname "abcdefghijklm*"', 13),
        (b"abcdefghijklm\0\0\0", Slot(16, Kind.DEVICE), 'iifname "abcdefghijklm"', 16),
        (b"\0\0\0\0\0\0\0\0", Slot(4, Kind.MARK), "", None),
    ],
)
def test_length_of_comparison_is_certain_or_none(raw, slot, listed, length):
    assert compared_length(raw, slot, read_listing(listed)) == length


def test_length_of_comparison_without_listing_is_none():
    assert compared_length(b"\x01\0\0\0", Slot(4, Kind.MARK), None) is None
    assert compared_length(b"\x01\0\0\x01", Slot(4, Kind.MARK), None) == 4


@pytest.mark.parametrize(
    ("byte_order", "protocol", "port", "mark"),
    [
        ("little", "0x00000006", "0x00001600", "0x00000105"),
        ("big", "0x06000000", "0x00160000", "0x00000105"),
    ],
)
def test_words_are_read_in_the_byte_order_of_the_machine(byte_order, protocol, port, mark):
    program = f"""
        meta load l4proto => reg 1
        cmp eq reg 1 {protocol}
        payload load 2b @ transport header + 2 => reg 1
        cmp eq reg 1 {port}
        immediate reg 1 {mark}
        meta set mark with reg 1
    """
    text = rule_text(program.replace("\n        ", " \n").replace(" \n", "\n"), "...", byte_order)
    assert text == "meta l4proto tcp tcp dport 22 meta mark set 0x105"


def test_element_statement_of_anonymous_set_is_unsupported():
    program = "payload load 4b @ network header + 12 => reg 1\nlookup reg 1 set __set0 0x0"
    elements = "inet t @__set0\n\telement 01010101  : 0 [end]\n"
    listing = (
        "table inet t {{ # handle 1\n\tchain c {{ # handle 1\n\t\t@nh,96,32 {{ 1.1.1.1{} }} # handle 2\n\t}}\n}}\n"
    )
    rule = "inet t c 2\n" + "".join(f"  [ {line} ]\n" for line in program.split("\n"))
    plain, limited = (decode(elements + rule + listing.format(text)) for text in ("", " limit rate 3/second"))
    assert nft_text.display_text(plain[0].chains[0].rules[0]) == "@nh,96,32 { 16843009 }"
    assert "elements have statements: limit" in nft_text.display_text(limited[0].chains[0].rules[0])


# --- rules that are missing ------------------------------------------------------------------

TWO_RULES = """inet t c 2
  [ immediate reg 0 accept ]

inet t c 3 2
  [ immediate reg 0 drop ]

table inet t { # handle 1
\tchain c { # handle 1
\t\ttype filter hook output priority 0; policy accept;
\t\taccept # handle 2
\t\tdrop # handle 3
\t}
}
"""
FIRST, SECOND = TWO_RULES.split("\n\n")[:2]


def rules_of(text: str) -> list[str]:
    (table,) = decode(text)
    return [nft_text.display_text(rule) for rule in table.chains[0].rules]


def test_both_rules_are_read():
    assert rules_of(TWO_RULES) == ["accept", "drop"]


@pytest.mark.parametrize(
    "text",
    [
        TWO_RULES.replace(FIRST + "\n\n", ""),
        TWO_RULES.replace(FIRST + "\n\n", "").replace(SECOND + "\n\n", ""),
        TWO_RULES.replace("\t\tdrop # handle 3\n", ""),
        TWO_RULES.replace("\t\tdrop # handle 3\n", "\t\tdrop\n"),
    ],
    ids=["gap in the handles", "no program", "not listed", "line without handle"],
)
def test_rule_that_is_not_shown_makes_the_chain_unsupported(text):
    assert any("nft" in rule and "<" in rule for rule in rules_of(text))


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("  [ immediate reg 0 drop ]", "  immediate reg 0 drop", 5, "[ EXPRESSION ]"),
        ("inet t c 3 2", "inet t", 4, "a rule or a set"),
        ("inet t c 3 2", "inet other c 3 2", 4, "a table of the listing"),
        ("inet t c 2", "inet t @s\n\telement 1 : 0 [end]", 2, "element KEY"),
        ("inet t c 2", "inet t @s\ninet t @s\ninet t c 2", 2, "each set once"),
        ("priority 0", "priority filter", 9, "priority NUMBER"),
        ("hook output", "hook elsewhere", 9, "hook HOOK"),
        ("\tchain c {", "\tthing c {", 8, "a chain, set, map"),
        ("\t}\n}\n", "\t}\n", 14, "the end of table t"),
        ("table inet t {", "table inet t { # handle 1\n\tflags new", 8, "dormant"),
    ],
)
def test_unknown_line_of_output_is_named(old, new, line, expected):
    assert old in TWO_RULES
    with pytest.raises(DebugOutputError) as caught:
        decode(TWO_RULES.replace(old, new, 1))
    assert (caught.value.line, expected in caught.value.expected) == (line, True), caught.value


# --- what only the listing shows -------------------------------------------------------------


def table_text(program: str, *listed: str) -> str:
    """Return the output for one table; `listed` are the lines of the listing inside of it."""
    return "\n".join([program.strip("\n"), "", "table inet t { # handle 1", *(f"\t{line}" for line in listed), "}", ""])


def unknown_of(text: str) -> str:
    """Return what is unsupported in a table, beside its rules."""
    (table,) = decode(text)
    return "\n".join(table.unknown)


ELEMENT = "inet t @s\n\telement 00001600  : 0 [end]"


def set_lines(*lines: str) -> tuple[str, ...]:
    return ("set s { # handle 2", *(f"\t{line}" for line in lines), "}")


def test_listed_set_is_read():
    (table,) = decode(table_text(ELEMENT, *set_lines("type inet_service", "flags timeout", "counter")))
    ((named,),) = [table.sets]
    assert (named.type, named.elements, named.flags) == (("inet_service",), {22}, {"timeout"})


@pytest.mark.parametrize(
    ("program", "lines", "reason"),
    [
        (ELEMENT, ("type inet_service", "limit rate 5/second"), "elements have statements: limit"),
        (ELEMENT, ("type inet_service", "something new"), "elements have statements: something new"),
        (ELEMENT, ("type inet_service", "elements = { 22 quota 5 bytes }"), "elements have statements: quota"),
        (ELEMENT.replace("00001600", "01001600"), ("type inet_service",), "an element of another length"),
        (ELEMENT.replace("00001600", "00011600"), ("type inet_service",), "an element of another length"),
        (ELEMENT.replace("00001600", "00001600 00000000"), ("type inet_service",), "elements of different lengths"),
        (f"{ELEMENT}\n\telement 00001600 00000000  : 0 [end]", ("typeof tcp dport",), "elements of different lengths"),
        (ELEMENT, ("typeof tcp dport",), "does not show the length of its keys"),
    ],
)
def test_set_is_unsupported_for_a_reason(program, lines, reason):
    assert reason in unknown_of(table_text(program, *set_lines(*lines)))


def test_set_with_two_lengths_of_keys_is_unsupported():
    rule = "inet t c {}\n  [ meta load l4proto => reg 1 ]\n  [ lookup reg 1 set s 0x0 ]\n\n"
    other = "inet t c 4 3\n  [ meta load mark => reg 1 ]\n  [ lookup reg 1 set s 0x0 ]"
    chain = ("chain c { # handle 1", "\tmeta l4proto @s # handle 3", "\tmeta mark @s # handle 4", "}")
    program = f"{ELEMENT}\n{rule.format(3)}{other}"
    text = unknown_of(table_text(program, *set_lines("typeof meta mark"), *chain))
    assert "does not show the length of its keys" in text


def test_line_without_handle_makes_its_chain_unsupported():
    text = TWO_RULES.replace("\t\tdrop # handle 3\n", "\t\tdrop # handle 3\n\t\tjump {\n")
    assert ["<" in rule for rule in rules_of(text)] == [True, False, False]
    mark = "  [ meta load mark => reg 1 ]\n  [ cmp eq reg 1 0x00000001 ]\n  [ immediate reg 0 drop ]"
    assert "does not show how many bytes" in rules_of(text.replace("  [ immediate reg 0 drop ]", mark))[2]
    elements = "inet t @__set0\n\telement 01010101  : 0 [end]\n"
    lookup = "  [ payload load 4b @ network header + 12 => reg 1 ]\n  [ lookup reg 1 set __set0 0x0 ]"
    assert "statements: not shown" in rules_of(elements + text.replace("  [ immediate reg 0 drop ]", lookup))[2]


def test_chain_that_hardware_executes_is_unsupported():
    declaration = "policy accept;"
    text = TWO_RULES.replace(declaration, f"{declaration} flags offload;")
    assert "hardware" in rules_of(text)[0]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("socket load cgroupv2 => reg 1", "level"),
        ("osf dreg 1", "ttl"),
        ("tunnel load id => reg 1", "mode"),
        ("match name socket rev 3", '"socket"'),
        ("target name MARK rev 2", '"MARK"'),
        ("inner type 1 hdrsize 8 flags f [ meta load mark => reg 1 ]", "an unknown expression"),
    ],
)
def test_expression_that_is_not_shown_whole_is_unsupported(program, reason):
    text = rule_text(program, "...")
    assert reason in text
    assert "<" in text


@pytest.mark.parametrize(
    ("name", "revision", "kind"),
    [
        ("comment", 0, nft.UnmodelledMatch),
        ("owner", 1, nft.UnmodelledMatch),
        ("socket", 2, nft.UnmodelledMatch),
        ("socket", 3, nft.UnknownStatement),  # may write the mark
        ("owner", 9, nft.UnknownStatement),
    ],
)
def test_match_of_iptables_without_data_has_no_known_result(name, revision, kind):
    (statement,) = decode_named_xt("match", name, revision, b"", "ip")
    assert isinstance(statement, kind)
