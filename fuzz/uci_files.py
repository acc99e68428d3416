"""UCI configurations of routers: arbitrary bytes, and mutated real ones."""

from hypothesis import strategies as st

from nftpolicy.importers.openwrt.draft import draft_policy
from nftpolicy.importers.openwrt.uci_parser import UciError, parse_uci
from nftpolicy.importers.openwrt.uplinks import NotImportable
from nftpolicy.policy.load import load
from tests.openwrt.router_configs import CASES

PIECES = [
    b"'",
    b'"',
    b"\\",
    b"\n",
    b"#",
    b";",
    b"\0",
    b"\xff",
    b"config ",
    b"option ",
    b"list ",
    b"wan",
    b"@wan",
    b"lo",
    b"eth0",
    b"proto",
    b"static",
    b"pppoe",
    b"0x0",
    b"-1",
    b"::/0",
    b"999.1.1.1",
    b"127.0.0.1",
    b"table",
    b"255",
    b"a" * 70,
    b"%",
    b"gateway",
    b"device",
    b"ip4table",
    b"mark",
    b"lookup",
    "\u00b2".encode(),
    b"1/",
    b"/33",
    b"fe80::1%x",
    b"group 0",
]
OPTIONS = st.sampled_from(
    (
        "device",
        "proto",
        "ipaddr",
        "netmask",
        "gateway",
        "ip6addr",
        "ip6gw",
        "ip4table",
        "ip6table",
        "mark",
        "lookup",
        "action",
        "goto",
        "priority",
        "src",
        "dest",
        "uidrange",
        "target",
        "table",
        "metric",
        "type",
        "interface",
        "name",
        "network",
        "masq",
        "dest_port",
        "icmp_type",
        "group",
        "packet_mark",
        "server",
        "enabled",
        "ifname",
        "fwmark",
        "endpoint_host",
        "in",
        "tos",
    )
)
VALUES = st.one_of(
    st.sampled_from(
        (
            "wan",
            "lan",
            "@wan",
            "eth0",
            "br-lan",
            "lo",
            "dhcp",
            "static",
            "pppoe",
            "qmi",
            "wireguard",
            "1",
            "0",
            "0x1/0x1",
            "0x0",
            "-1",
            "010",
            "254",
            "192.0.2.1/24",
            "192.0.2.1",
            "255.255.0.255",
            "::/0",
            "2001:db8::1",
            "127.0.0.1",
            "224.0.0.1",
            "22",
            "ACCEPT",
            "root",
            "gluon-mesh-vpn",
            "a/b",
            "/dev/x",
            "tcp",
            "udp",
            "*",
        )
    ),
    st.text(st.characters(exclude_characters="'\0", exclude_categories=("Cs",)), max_size=20),
    st.integers().map(str),
)
KINDS = st.sampled_from(
    (
        "interface",
        "rule",
        "rule6",
        "route",
        "route6",
        "device",
        "zone",
        "forwarding",
        "redirect",
        "include",
        "fastd",
        "broker",
        "static",
        "dhcp",
        "wireguard_wan",
        "wifi-iface",
        "wgpeerselector",
    )
)


@st.composite
def edited_files(draw):
    """Draw the files of a case with some bytes changed."""
    files = {name: text.encode() for name, text in draw(st.sampled_from(sorted(CASES.items())))[1].files.items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.binary(max_size=6) | st.sampled_from(PIECES) | st.just(data[start:end] * 2))
        files[name] = data[:start] + piece + data[end:]
    return files


@st.composite
def synthetic_files(draw):
    """Draw sections of known types with arbitrary options."""
    names = ("firewall", "fastd", "tunneldigger", "wireless", "gluon-wan-dnsmasq", "dhcp", "wgpeerselector", "mwan3")
    files = {}
    for name in ("network", *draw(st.lists(st.sampled_from(names), max_size=3, unique=True))):
        lines = ["config interface wan\n option device eth1\n option proto dhcp"] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(0, 4))):
            kind = draw(KINDS)
            called = (
                draw(st.sampled_from(("", "wan", "lan")))
                if kind == "interface"
                else draw(st.just("") | st.just(f"x{len(lines)}"))
            )
            lines.append(f"config {kind} {called}" if called else f"config {kind}")
            lines += [
                f" {draw(st.sampled_from(('option', 'list')))} {draw(OPTIONS)} '{draw(VALUES)}'"
                for _ in range(draw(st.integers(0, 5)))
            ]
        files[name] = "\n".join(lines).encode()
    return files


RANDOM_FILES = st.fixed_dictionaries(
    {"network": st.binary(max_size=200)}, optional={"firewall": st.binary(max_size=100)}
)


def check_import(files):
    """Check that the importer returns a valid policy, or raises an error of one line."""
    try:
        draft = draft_policy({name: parse_uci(data, name, name) for name, data in files.items()})
    except (UciError, NotImportable) as error:
        assert "\n" not in str(error), error
        return
    load(draft.text.encode(), "FILE")
