"""Lines of keys in TOML files of every layout."""

import pytest

from nftpolicy.policy.errors import PolicyText, format_path

TEXT = """\
# uplink.wan.mark = 1
name = "p"
inside = [ # [uplink.wan]
    "bat0",  # ] not yet
    "mesh=*",

    "]", 'a"b',
]
uplink.wan.mark = "1"
uplink . "wan" . 'table' = 7
service = { vpn = { uplink = "wan", to = [
    "192.0.2.0/24",
    "192.0.2.1" ] }, "x.y" = {} }
text = \"\"\"
[uplink.lte]
mark = 1
\\"\"\" \"\"\"
other = '''
[uplink.lte]
''' # '''

  [ uplink . lte ]  # [service]
\tmark = 0x1
table=2020-01-01T00:00:00Z
devices = [["a"],
  [], [
  "b"]]
[uplink.lte.resolver]
"us\\u0065r" = 'a#b'
[[list]]
k = 1
[[list]]
k = 2
"""

PLACES = [
    (("name",), 2),
    (("inside",), 3),
    (("inside", 0), 4),
    (("inside", 1), 5),
    (("inside", 2), 7),
    (("inside", 3), 7),
    (("inside", 4), 3),
    (("uplink",), 9),
    (("uplink", "wan"), 9),
    (("uplink", "wan", "mark"), 9),
    (("uplink", "wan", "table"), 10),
    (("uplink", "wan", "devices", 3), 9),
    (("service",), 11),
    (("service", "vpn", "uplink"), 11),
    (("service", "vpn", "to", 0), 12),
    (("service", "vpn", "to", 1), 13),
    (("service", "x.y"), 13),
    (("text",), 14),
    (("other",), 18),
    (("uplink", "lte"), 22),
    (("uplink", "lte", "mark"), 23),
    (("uplink", "lte", "table"), 24),
    (("uplink", "lte", "devices", 0, 0), 25),
    (("uplink", "lte", "devices", 2, 0), 27),
    (("uplink", "lte", "resolver"), 28),
    (("uplink", "lte", "resolver", "user"), 29),
    (("list", 0, "k"), 31),
    (("list", 1, "k"), 33),
    (("nowhere",), None),
    ((), None),
]


@pytest.mark.parametrize(("path", "line"), PLACES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_key_has_expected_line(path, line, end):
    assert PolicyText("FILE", TEXT.replace("\n", end)).line_of(path) == line


def test_sample_is_valid_toml():
    import tomllib

    assert tomllib.loads(TEXT)["uplink"]["lte"]["resolver"] == {"user": "a#b"}


def test_only_line_feed_ends_a_line():
    assert PolicyText("FILE", "# \u2028 \x85\nname = 1").line_of(("name",)) == 2


@pytest.mark.parametrize(
    "text", ["[", "a", "a = ", "a = [", 'a = "', "= 1", "a = {b", "[[a]", "]", "a = [1,,", "a = [}", "a = {]", "\x00"]
)
def test_invalid_toml_raises_no_error(text):
    PolicyText("FILE", text).line_of(("b",))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("uplink", "wan", "devices", 0), "uplink.wan.devices[0]"),
        (("a b", "c"), "'a b'.c"),
        (("a\nb",), "'a\\nb'"),
        (("x", ""), "x.''"),
        (("k" * 99,), "'" + "k" * 60 + "...'"),
    ],
)
def test_key_paths_are_formatted_on_one_line(path, key):
    assert format_path(path) == key
