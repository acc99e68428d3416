"""Syntax of UCI: quotes, comments, lists, names, and reading of written text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftpolicy.importers.openwrt.interfaces import parse_unsigned
from nftpolicy.importers.openwrt.uci_parser import UciError, parse_uci
from nftpolicy.integration.openwrt import uci
from nftpolicy.policy.load import load
from tests import policy_strategies


def one(text):
    (section,) = parse_uci(text.encode(), "f")
    return {key: tuple(value.text for value in values) for key, values in section.options.items()}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("option a b", "b"),
        ("option a 'b c'", "b c"),
        ("option a \"b 'c'\"", "b 'c'"),
        ("option a 'it'\\''s'", "it's"),
        (r'option a "a\"b\\c"', 'a"b\\c'),
        (r"option a b\ c", "b c"),
        ("option a 'b#c' # d", "b#c"),
        ("option a b#c", "b"),
        ("option a ''", ""),
        ("option a 'x\ny'", "x\ny"),
        ("option a b\\\nc", "bc"),
        ("o a b", "b"),
        ("option a 1; option a 2", "2"),
        ("option a 1\r", "1"),
    ],
)
def test_parse_uci_reads_option_value(line, value):
    assert one(f"config t\n\t{line}\n") == {"a": (value,)}


def test_parse_uci_reads_lists_sections_and_lines():
    text = "package network\n\nconfig t 'n' # c\n list a 1\n list a '2 3'\n\n#config x\nconfig t\nconfig t n\n option b 4\n"
    first, second = parse_uci(text.encode(), "f")
    assert (first.package, first.name, first.line, second.name, second.line) == ("network", "n", 3, None, 8)
    assert first.words("a") == ("1", "2", "3") and first.get("b") == "4"
    assert (first.location("b"), first.location("none")) == ("f:10", "f:3")


def test_parse_uci_option_replaces_list():
    assert one("config t\n list a 1\n option a 2\n list a 3\n") == {"a": ("2", "3")}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("config t\n option a 'b\n\n", 2),
        ('config t\n option a "b', 2),
        ("config\n", 1),
        ("config t 'a b'\n", 1),
        ("config t a b\n", 1),
        ("\n\nlist a b\n", 3),
        ("config t\n option a\n", 2),
        ("config t\n option 'a b' c\n", 2),
        ("package\n", 1),
        ("config t\n option a b\\", 2),
        ("config t\n option a 'b\n' x 'c\n", 3),
    ],
)
def test_parse_uci_error_names_line(text, line):
    with pytest.raises(UciError) as found:
        parse_uci(text.encode(), "f")
    assert found.value.line == line, str(found.value)
    assert str(found.value).startswith(f"f:{line}: ")


@given(st.binary(max_size=200))
def test_parse_uci_of_any_bytes_parses_or_raises(data):
    try:
        parse_uci(data, "f")
    except UciError as error:
        assert 1 <= error.line <= data.count(b"\n") + 1
        assert "\n" not in str(error)


@given(policy_strategies.toml())
def test_parse_uci_reads_rendered_config_back(text):
    policy, _ = load(text.encode(), "p")
    wanted = uci.network_sections(policy)
    found = parse_uci(uci.render_config(wanted).encode(), "network", "network")
    assert [(each.type, each.name) for each in wanted] == [(each.type, each.name) for each in found]
    for each, other in zip(wanted, found, strict=True):
        assert dict(each.options) == {key: values[0].text for key, values in other.options.items()}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("0x1F", 31), ("010", 8), ("08", None), ("-1", 0xFFFFFFFF), ("0x100000000", 0), ("0x100000001", 1), ("", None),
     ("abc", None), ("0x", None), ("1 ", None), (" 1", 1), ("+5", 5), ("1_0", None), ("²", None)],
)  # fmt: skip
def test_parse_unsigned_equals_strtoul(text, number):
    assert parse_unsigned(text) == number
