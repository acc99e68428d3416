"""Set elements that are read by netlink equal those that libnftables lists."""

from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.netlink import constants as nl
from nftpolicy.kernel.netlink import nft_ruleset
from nftpolicy.kernel.netlink.attributes import attributes, decode_text
from nftpolicy.kernel.netlink.nft_ruleset import read_tables
from nftpolicy.kernel.netlink.socket import NetlinkSocket
from nftpolicy.netstate.formats import nft_json_decode
from nftpolicy.netstate.nft import Element
from tests.lab.netns import Namespace


def elements(name: str) -> frozenset[Element]:
    (table,) = read_tables("t")
    return next(each.elements for each in table.sets if each.name == name)


SETS = {
    "owners": ("gid", "0, 1, 800, 4294967294"),
    "users": ("uid", "65534"),
    "ports": ("inet_service", "1, 53, 65535"),
    "protocols": ("inet_proto", "tcp, udp, 253"),
    "four": ("ipv4_addr", "192.0.2.1, 198.51.100.255"),
    "six": ("ipv6_addr", "2001:db8::1, ::1, fe80::1"),
    "rows4": ("gid . ipv4_addr", "800 . 192.0.2.1, 801 . 192.0.2.2"),
    "rows6": ("uid . ipv6_addr . inet_proto . inet_service", "1 . 2001:db8::1 . tcp . 443, 2 . ::1 . udp . 53"),
    "places": ("inet_proto . ipv4_addr . inet_service", "tcp . 127.0.0.1 . 54, udp . 127.0.0.1 . 54"),
    "none": ("gid", ""),
}


def compared() -> list[str]:
    """Return the names of sets whose elements differ from the listing; runs in the namespace."""
    nft = Nft()
    body = "".join(
        f"set {name} {{ type {kind};\n{f'elements = {{ {listed} }}' if listed else ''}\n}}\n"
        for name, (kind, listed) in SETS.items()
    )
    error = nft.load(f"table inet t {{\n{body}}}\n")
    assert error is None, error
    (table,) = nft_json_decode.decode_ruleset(nft.list_json("list table inet t"))
    return [one.name for one in table.sets if elements(one.name) != one.elements]


def test_set_elements_equal_listing_of_libnftables() -> None:
    with Namespace("elements") as space:
        assert space.call(compared) == []


def many() -> tuple[int, bool]:
    nft = Nft()
    wanted = {(number, f"192.0.{number >> 8 & 255}.{number & 255}") for number in range(20_000)}
    rows = ", ".join(f"{number} . {address}" for number, address in wanted)
    error = nft.load(f"table inet t {{\nset s {{ type gid . ipv4_addr;\nelements = {{ {rows} }}\n}}\n}}\n")
    assert error is None, error
    return len(wanted), elements("s") == wanted


def test_set_elements_of_several_messages_are_read() -> None:
    with Namespace("elements") as space:
        assert space.call(many) == (20_000, True)


OWNERS = ("inet t", "ip t", "ip other")


def tables_of_rules() -> list[set[str]]:
    """Return the names of the tables whose rules the kernel dumps for a table and for all; runs in the namespace."""
    error = Nft().load("".join(f"table {name} {{ chain c {{ drop; }}; }}\n" for name in OWNERS))
    assert error is None, error
    found = []
    for name in ("t", None):
        with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
            messages = list(netlink.stream(nl.NFT_MSG_GETRULE, nft_ruleset.rule_request(2, name)))
        found.append(
            {decode_text(dict(attributes(raw, begin + 4, end))[nl.NFTA_TABLE]) for raw, begin, end in messages}
        )
    return found


def test_rules_of_other_tables_are_left_out_by_the_kernel() -> None:
    with Namespace("elements") as space:
        assert space.call(tables_of_rules) == [{"t"}, {"t", "other"}]
        tables = space.call(lambda: read_tables("t"))
        assert {table.key: len(table.chains[0].rules) for table in tables} == {("inet", "t"): 1, ("ip", "t"): 1}


def test_set_element_with_comment_is_read() -> None:
    with Namespace("elements") as space:
        assert space.call(with_comments) == frozenset({(1, "192.0.2.1"), (2, "192.0.2.2")})


def with_comments() -> object:
    nft = Nft()
    rows = '1 . 192.0.2.1 comment "a", 2 . 192.0.2.2'
    error = nft.load(f"table inet t {{\nset s {{ type gid . ipv4_addr;\nelements = {{ {rows} }}\n}}\n}}\n")
    assert error is None, error
    return elements("s")
