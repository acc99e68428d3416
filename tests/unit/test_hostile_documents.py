"""Documents of another machine: no text in them becomes a line of a script, a path, or a traceback."""

import json
import typing

import attrs
import pytest

from nftpolicy.model.packet import Packet
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_json_decode, ip_text, nft_json_decode, nft_text
from nftpolicy.netstate.formats.snapshot_codec import decode_value, encode_value
from nftpolicy.netstate.routing import IpRule, Nexthop, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.proof.reproduce.script import reproduction_script
from nftpolicy.runtime.snapshot import SnapshotError, decode_snapshot
from tests.kernel.strange_names import DEVICES as DEVICE_NAMES
from tests.unit.test_router_snapshot import LINKS, snapshot_text

COMMAND = "id >/tmp/x"
HOSTILE = (
    f"1\nEND\n{COMMAND}\ncat <<'END'\n",
    f"1\r{COMMAND}",
    f"1; {COMMAND}",
    "1 onlink",
    "\x1b[2J",
    "fe80::1%\nEND\n",
)
DEVICES = ("name", "device", "iif", "oif", "master", "link")
PACKET = Packet(family=4, destination=0xC0000209, protocol=17, sport=40000, dport=9)
GOOD = NetState(
    rules=(IpRule(4, 5, table=254, source="192.0.2.0/24", destination="198.51.100.0/24", iif="lo", oif="wan"),),
    routes=(
        Route(4, 254, "default", gateway="192.0.2.1", device="wan", prefsrc="192.0.2.2", scope="link"),
        Route(6, 254, "2001:db8::/32", source="2001:db8:1::/48", nexthops=(Nexthop("wan", "fe80::1"),)),
    ),
    sysctls=(Sysctl("net/ipv4/ip_forward", "1"),),
    devices=(Device("wan", ("192.0.2.2/24",), master="br0", link="eth0"),),
)


def with_text(state: NetState, field: str, index: int, part: str, text: str) -> NetState:
    items = list(getattr(state, field))
    items[index] = attrs.evolve(items[index], **{part: text})
    return attrs.evolve(state, **{field: tuple(items)})


TEXTS = [
    (field, index, part.name)
    for field in ("rules", "routes", "sysctls", "devices")
    for index, item in enumerate(getattr(GOOD, field))
    for part in attrs.fields(attrs.resolve_types(type(item)))
    if part.type is str or (str in typing.get_args(part.type) and type(None) in typing.get_args(part.type))
    if part.name != "kind"
]


def test_good_document_is_accepted_and_written() -> None:
    assert decode_value(encode_value(GOOD), NetState) == GOOD
    assert len(TEXTS) > 15
    assert "route append default via 192.0.2.1 dev wan" in reproduction_script(GOOD, PACKET, "wan", "title")


@pytest.mark.parametrize(("field", "index", "part"), TEXTS)
@pytest.mark.parametrize("text", HOSTILE)
def test_text_that_is_no_name_is_refused(field: str, index: int, part: str, text: str) -> None:
    state = with_text(GOOD, field, index, part, text)
    if (part == "value" and text.isprintable()) or (part in DEVICES and not any(map(str.isspace, text))):
        assert decode_value(encode_value(state), NetState) == state  # a kernel can have it
        return
    with pytest.raises(ValueError, match="is not valid"):
        decode_value(encode_value(state), NetState)


@pytest.mark.parametrize(("field", "index", "part"), TEXTS)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_a_line_of_the_script(field: str, index: int, part: str, text: str) -> None:
    state = with_text(GOOD, field, index, part, text)
    try:
        script = reproduction_script(state, PACKET, "wan", text)
    except ValueError:
        return
    assert COMMAND not in script.split("\n")
    assert "\r" not in script and "\x1b" not in script
    batch = [line for line in script.splitlines() if line.startswith(("route append", "rule add", "addr add"))]
    assert not [line for line in batch if "1 onlink" in line]


@pytest.mark.parametrize(
    "path", ["net/../../etc/passwd", "net/ipv4/../../../tmp/x", "/etc/passwd", "net//x", "net/a b"]
)
def test_sysctl_path_stays_below_proc_sys(path: str) -> None:
    state = attrs.evolve(GOOD, sysctls=(Sysctl(path, "1"),))
    with pytest.raises(ValueError, match="is not valid"):
        decode_value(encode_value(state), NetState)
    try:
        assert path not in reproduction_script(state, PACKET, "wan", "title")
    except ValueError as error:
        assert "is not the path of a sysctl" in str(error)


def test_every_device_name_of_the_kernel_is_read() -> None:
    for name in (name.decode("utf-8", "surrogateescape") for name in (*DEVICE_NAMES, b"a\x1d", b"\xc2\x85")):
        state = NetState(devices=(Device(name, link=name),), sysctls=(Sysctl(f"net/ipv4/conf/{name}/rp_filter", "1"),))
        assert decode_value(encode_value(state), NetState) == state
    for name in ("", "..", "a b", "a/b", "a:b", "\udca0", "a\n", "x" * 16):
        with pytest.raises(ValueError, match="is not valid"):
            decode_value(encode_value(NetState(devices=(Device(name),))), NetState)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("key", ["scope", "gateway", "prefsrc", "dst", "from", "via"])
def test_listing_of_routes_with_other_text_is_refused(key: str, text: str) -> None:
    route = {"dst": "default", "dev": "wan", "table": "254", "protocol": "3", "flags": []}
    value = {"family": "inet", "host": text} if key == "via" else text
    with pytest.raises(ValueError, match="not an ip route"):
        ip_json_decode.decode_routes(json.loads(json.dumps([{**route, key: value}])), 4)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["wan$(id)", "wan`id`", "wan'", 'wan"', "wan#", "wan\\", "w;id"])
def test_device_with_a_special_name_is_not_written(name: str, text: str) -> None:
    for item in (Route(4, 254, device=name), Route(4, 254, nexthops=(Nexthop(name),)), Route(4, 254, scope=text)):
        with pytest.raises(ValueError, match="is not one plain word"):
            ip_text.route_text(item)
    with pytest.raises(ValueError, match="is not one plain word"):
        ip_text.rule_text(IpRule(4, 5, iif=name))


@pytest.mark.parametrize("text", [*HOSTILE, "1", "fe80::1", ""])
def test_router_snapshot_with_a_hostile_address_is_refused(text: str) -> None:
    links = json.loads(LINKS)
    links[0]["addr_info"][0]["local"] = text
    data = snapshot_text(addresses=json.dumps(links)).encode("utf-8", "surrogatepass")
    if text == "fe80::1":
        assert decode_snapshot(data).state.devices[0].addresses == ("fe80::1/8",)
        return
    with pytest.raises(SnapshotError) as refusal:
        decode_snapshot(data)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "item",
    [
        Route(4, 254, "2001:db8::/32", device="wan"),
        Route(6, 254, "192.0.2.0/24", device="wan"),
        Route(4, 254, prefsrc="fe80::1", device="wan"),
        IpRule(4, 5, table=254, source="fe80::/64"),
        IpRule(6, 5, table=254, destination="192.0.2.1"),
    ],
)
def test_address_of_the_other_family_is_refused(item: Route | IpRule) -> None:
    state = NetState(rules=(item,)) if isinstance(item, IpRule) else NetState(routes=(item,))
    with pytest.raises(ValueError, match="is not of IPv"):
        decode_value(encode_value(state), NetState)


def test_message_about_a_hostile_value_is_one_line() -> None:
    document = encode_value(GOOD)
    document["routes"] = "\n[Service]\n"
    with pytest.raises(ValueError, match="expected a list") as refusal:
        decode_value(document, NetState)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("value", ["-150", None, True, 1.5, [], "z9q"])
def test_chain_priority_that_is_no_number_is_refused(value: object) -> None:
    chain = {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "output", "policy": "accept"}
    objects = [{"table": {"family": "inet", "name": "t"}}, {"chain": {**chain, "prio": value}}]
    with pytest.raises(ValueError, match="is not a number"):
        nft_json_decode.decode_ruleset({"nftables": objects})


def test_display_of_a_hostile_expression_is_one_line() -> None:
    assert nft_text.display_text(nft.Match(nft.Meta("\nz9q"), 1)).isprintable()
