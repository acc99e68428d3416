"""Errors of policy files that are not TOML, in own words with place and carets; all errors of a file at once."""

import re

import pytest

from nftpolicy.policy.load import MAX_ERRORS
from tests.unit.test_policy_errors import GOOD, fault

# Text -> place, message, and the source line with carets.
NOT_TOML = [
    ("a = 1\nb = \n", "2:5", "the value is missing; expected a value: a string in quotes, a number", "b =\n        ^"),
    ("a = wan", "1:5", 'a string needs quotes: "wan"', "a = wan\n        ^^^"),
    ("a = Yes # x", "1:5", "'Yes' is not a value; write true or false", "a = Yes # x\n        ^^^"),
    ("a = -\n", "1:5", "'-' is not a value; expected a value", "a = -\n        ^"),
    ("a = ]", "1:5", "expected a value: a string in quotes", "a = ]\n        ^"),
    ("a = 0x1/0x1", "1:8", "expected the end of the line; one KEY = VALUE is a line, and a string needs quotes", ""),
    ("a = 1 b = 2", "1:7", "expected the end of the line", "a = 1 b = 2\n          ^"),
    ("a = 1\rb = 2\r", "1:6", "the lines end with CR alone; save the file with LF or CR LF", ""),
    ("\ufeffa = 1", "1:1", "the file begins with a byte order mark", "?a = 1\n    ^^"),
    ('{"a": 1}', "1:1", "the file begins like JSON; a policy is TOML: KEY = VALUE", '{"a": 1}\n    ^'),
    ("name: t", "1:5", "expected = and not : after the key; a policy is TOML, not YAML", "name: t\n        ^"),
    ("name t", "1:6", "expected = after the key", "name t\n         ^"),
    ("*.a = 1", "1:1", "expected KEY = VALUE, [TABLE] or a comment", "*.a = 1\n    ^^^"),
    ("a.*.c = 1", "1:3", "expected a key: letters, digits, - and _", "a.*.c = 1\n      ^^^"),
    ("[a\nb = 1", "1:3", "the name of a table ends with ]", "[a\n      ^"),
    ("[[a]\nb = 1", "1:4", "the name of a table ends with ]", "[[a]\n       ^"),
    ('x = "a\ny = 1', "1:7", "a string is not closed; add the quote", 'x = "a\n          ^'),
    ("x = 'a\ny = 1", "1:5", "a string is not closed; add the quote", "x = 'a\n        ^"),
    ("x = 'a\ny = 'b'", "1:7", "a string is not closed; add the quote", "x = 'a\n          ^"),
    ('x = """\n\n', "1:7", "a string is not closed; add the quote", 'x = """\n          ^'),
    ('x = "a\0"', "1:7", "'\\x00' cannot be in a string or comment", 'x = "a?"\n          ^'),
    ("x = 1 # \x07", "1:9", "'\\x07' cannot be in a string or comment", ""),
    (r'x = "\d"', "1:8", r"\ begins an escape; write \\, or put the string in single quotes", ""),
    (r'x = "\uzz"', "1:8", r"\u has 4 and \U has 8 hexadecimal digits", ""),
    (r'x = "\ud800"', "1:12", r"\u has 4 and \U has 8 hexadecimal digits", ""),
    ("x = 2026-02-31", "1:5", "there is no such date", "x = 2026-02-31\n        ^^^^^^^^^^"),
    ("x = [1,\n", "1:8", "the value is missing", "x = [1,\n           ^"),
    ('x = ["a"\n[b]\n', "2:1", "a list is not closed; expected , or ]", "[b\n    ^^".replace("[b", "[b]")),
    ("x = {a = 1\n", "1:11", "an inline table is not closed on its line; expected , or }", "x = {a = 1\n              ^"),
    ("x = {a = 1, a = 2}", "1:13", "x.a is already set in line 1; write it once", "x = {a = 1, a = 2}\n                ^"),
    ("a = 1\n\na = 2\n", "3:1", "a is already set in line 1; write it once", "a = 2\n    ^"),
    ("[a]\n[b]\n[a]\n", "3:2", "[a] is already declared in line 1; write it once", "[a]\n     ^"),
    ('["x (at line 7, column 1)"]\n' * 2, "2:2", "['x (at line 7, column 1)'] is already declared in line 1", ""),
    ("a = 1\n[a]\n", "2:3", "Cannot overwrite a value", ""),
    ("é = 1\n", "1:1", "expected KEY = VALUE", "é = 1\n    ^"),
    ("日本 = 1\n", "1:1", "expected KEY = VALUE", "日本 = 1\n    ^^^^"),
    (f"a = {'b' * 99}\n", "1:5", f'a string needs quotes: "{"b" * 60}"', f"a = {'b' * 68}...\n        {'^' * 68}"),
    (f'a = "{"b" * 200}" c\n', "1:208", "expected the end of the line", f"{'b' * 38}\" c\n    {' ' * 40}^"),
]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("text", "place", "words", "excerpt"), NOT_TOML)
def test_syntax_error_has_own_words_and_caret(text, place, words, excerpt, end):
    error = fault(text.replace("\n", end))
    assert str(error).startswith(f"FILE:{place}: not TOML: {words}"), str(error)
    assert [line.rstrip() for line in error.excerpt.splitlines()] == f"    {excerpt}".split("\n") or not excerpt


def test_all_errors_of_a_file_are_in_its_order():
    text = (
        'nam = "t"\ninside = "wg0"\n[uplink.wan]\ndevice = ["eth0"]\nmark = 1\ntable = "main"\nexempt = ["dhcp"]\n'
        '[service.vpn]\nuplnk = "wan"\ngroups = 800\n'
    )
    first = fault(text)
    errors = [(f"{error.line}:{error.column}", error.message, error.excerpt) for error in (first, *first.more_errors)]
    assert [(place, excerpt.split("\n")[1].strip()) for place, _, excerpt in errors] == [
        ("1:1", "^^^"), ("2:10", "^^^^^"), ("4:1", "^^^^^^"), ("5:8", "^"),
        ("6:9", "^^^^^^"), ("7:11", "^^^^^^"), ("9:1", "^^^^^"), ("10:1", "^^^^^^"),
    ]  # fmt: skip
    assert [word for _, message, _ in errors for word in re.findall(r"did you mean (.*?)\?", message)] == [
        "'name'", "'devices'", "'dhcpv4' or 'dhcpv4-unicast' or 'dhcpv4-server' or 'dhcpv6' or 'dhcpv6-server'", "'uplink'", "'group'",
    ]  # fmt: skip
    assert not any("missing" in message for _, message, _ in errors), "keys that are only misspelt"


def test_all_values_that_do_not_fit_are_named():
    text = GOOD.replace("table = 8", "table = 7").replace('uplink = "lte"', 'uplink = "let"').replace("= 900", "= 0")
    first = fault(text)
    lines = [text.splitlines()[error.line - 1] for error in (first, *first.more_errors)]
    assert lines == ["table = 7", 'uplink = "let"', "user = 0", 'uplink = "let"']


def test_errors_of_a_large_file_are_limited():
    first = fault(f"name = 'p'\ninside = {[1] * 50_000}\n" + "".join(f"a{number} = 1\n" for number in range(50_000)))
    assert len(first.more_errors) + 1 == MAX_ERRORS
