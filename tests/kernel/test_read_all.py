"""State of a kernel: read by netlink, read by `ip -j`, and written as commands for `ip`."""

import faulthandler
import json
import random
import subprocess

import pytest
from attrs import evolve

from nftpolicy.kernel.errors import Unavailable
from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.linux import Linux
from nftpolicy.kernel.netlink.rtnetlink import Rtnetlink
from nftpolicy.netstate.formats import ip_json_decode, ip_text
from nftpolicy.netstate.nft import SetRef
from tests.kernel.lookup_differential import install, prepare, random_commands
from tests.lab.netns import Namespace, search_path

pytestmark = pytest.mark.kernel

SELECTORS = [
    "not from 10.0.0.0/8 fwmark 0x10/0xff00 lookup 100",
    "goto 100",
    "to 10.1.0.0/16 iif lo lookup main suppress_prefixlength 0",
    "lookup main suppress_ifgroup 3",
    "uidrange 5-6 ipproto tcp sport 5-6 dport 53 lookup 1000",
    "oif a0 tos 0x10 prohibit",
    "iif zz blackhole",
    "l3mdev",
    "goto 5000",
    "nop",
    "fwmark 0/0xff unreachable",
]
TABLES = """
table ip a {
 set plain { type ipv4_addr; elements = { 192.0.2.1 }
 }
 set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }
 }
 map marks { type ipv4_addr : mark; elements = { 192.0.2.1 : 5 }
 }
 chain c { type route hook output priority 0; ip daddr @plain drop; meta mark set ip daddr map @marks; numgen inc mod 2 0 drop; }
}
table bridge b {
 set macs { type ether_addr; elements = { 00:11:22:33:44:55 }
 }
}
table arp c { chain c { type filter hook output priority 0; }
}
table netdev d {
 chain in { type filter hook ingress device "a0" priority 0; policy accept; }
}
"""


def ip(*words):
    found = subprocess.run(["ip", *words], capture_output=True, text=True, check=True, env={"PATH": search_path()})
    return found.stdout


@pytest.fixture
def space(able):
    with Namespace("everything") as made:
        prepare(made)
        yield made


def read():
    """Return rules and routes of both families, by netlink and by `ip` (with numbers and with names)."""
    links = Rtnetlink()
    found = []
    for family in (4, 6):
        for numbers in (["-N"], []):
            said = [
                json.loads(ip("-j", f"-{family}", *numbers, *what.split()) or "[]")
                for what in ("rule", "route show table all")
            ]
            found.append(
                (
                    (tuple(links.rules(family)), tuple(links.routes(family))),
                    (ip_json_decode.decode_rules(said[0], family), ip_json_decode.decode_routes(said[1], family)),
                )
            )
    return found


def whole(one):
    """Return the object with the fields that comparisons ignore, except its protocol, which ip prints with -d only."""
    return (
        ip_text.display_text(one).rpartition(" proto")[0],
        one.unknown,
        getattr(one, "scope", ""),
        getattr(one, "dead", ""),
    )


def same(space):
    for netlink, by_ip in space.call(read):
        for ours, theirs in zip(netlink, by_ip, strict=True):
            assert sorted(map(whole, ours), key=repr) == sorted(map(whole, theirs), key=repr)


def test_rules_by_netlink_equal_rules_by_ip(space):
    for family in (4, 6):
        for at, words in enumerate(SELECTORS):
            if family == 6:
                words = words.replace("10.0.0.0/8", "fd00::/8").replace("10.1.0.0/16", "fe80::/10")
            space.run(["ip", f"-{family}", "rule", "add", "priority", str(10 + at), *words.split()])
    same(space)
    assert not any(one.unknown for (rules, _), _ in space.call(read) for one in rules)


@pytest.mark.parametrize("seed", range(6))
def test_generated_state_by_netlink_equals_state_by_ip(space, seed):
    space.call(install, random_commands(random.Random(seed)))
    same(space)


def test_routes_with_nexthop_objects_are_resolved(space):
    space.ip(
        "nexthop add id 5 via 10.1.0.3 dev a0",
        "nexthop add id 6 via 10.2.0.3 dev b0",
        "nexthop add id 7 group 5/6",
        "route add 198.51.100.0/24 nhid 7",
        "route add 203.0.113.0/24 nhid 5",
    )
    same(space)
    found = {one.destination: one for (_, routes), _ in space.call(read) for one in routes}
    assert [hop.device for hop in found["198.51.100.0/24"].nexthops] == ["a0", "b0"]
    assert found["203.0.113.0/24"].gateway == "10.1.0.3"
    space.sysctl("net.ipv4.nexthop_compat_mode", 0)
    same(space)
    found = {one.destination: one for (_, routes), _ in space.call(read) for one in routes}
    assert found["198.51.100.0/24"].unknown == ("nhid 7",)


def rewrite(seed):
    """Return the installed objects, and those after removal and restoration by the text for `ip`."""
    links, states = Rtnetlink(), []
    install(random_commands(random.Random(seed)))
    for _ in range(2):
        rules = tuple(one for family in (4, 6) for one in links.rules(family))
        routes = tuple(one for family in (4, 6) for one in links.routes(family) if one.protocol == 3)
        states.append((rules, routes))
        install([])
        for family in (4, 6):
            mine = tuple(one for one in rules if one.priority not in (0, 32766, 32767))
            batch = ip_text.batch_text(mine, routes, family)
            subprocess.run(
                ["ip", f"-{family}", "-batch", "-"], input=batch, text=True, check=True, env={"PATH": search_path()}
            )
    return states


@pytest.mark.parametrize("seed", range(10, 18))
def test_ip_batch_text_restores_rules_and_routes(space, seed):
    before, after = space.call(rewrite, seed)
    kept = {0, 32766, 32767}
    for old, new in zip(before, after, strict=True):
        plain = [[one for one in some if getattr(one, "priority", 1) not in kept] for some in (old, new)]
        assert sorted(map(ip_text.display_text, plain[0])) == sorted(map(ip_text.display_text, plain[1]))


def everything():
    return Linux().read_all()


def test_read_all_returns_rules_routes_and_tables(space):
    space.nft(TABLES)
    space.ip("rule add priority 5 fwmark 1 lookup 100", "-6 route add unreachable default table 100")
    space.sysctl("net.ipv4.fwmark_reflect", 1)
    found = space.call(everything)
    tables = {table.key: table for table in found.tables}
    assert set(tables) == {("ip", "a"), ("bridge", "b"), ("arp", "c"), ("netdev", "d")}
    sets = {one.name: one.elements for table in found.tables for one in table.sets}
    assert sets == {"plain": {"192.0.2.1"}, "nets": {"10.0.0.0/8"}, "macs": {"00:11:22:33:44:55"}}
    assert SetRef("plain") in [
        one.right for one in tables["ip", "a"].chains[0].rules[0].statements if hasattr(one, "right")
    ]
    assert tables["netdev", "d"].chains[0].hook.device == "a0"
    assert [one.priority for one in found.rules if one.family == 4] == [0, 5, 32766, 32767]
    assert [one.priority for one in found.rules if one.family == 6] == [0, 32766]
    assert {one.table for one in found.routes} == {100, 254, 255}
    values = {one.path: one.value for one in found.sysctls}
    assert values["net/ipv4/fwmark_reflect"] == "1"
    assert values["net/ipv4/conf/a0/rp_filter"] == "0"
    devices = {one.name: one for one in found.devices}
    assert {"lo", "a0", "pa0"} <= set(devices)
    assert devices["a0"].addresses[:2] == ("10.1.0.1/16", "10.5.0.1/24")
    assert (devices["b0"].group, devices["pd0"].up, devices["a0"].kind) == (5, False, "veth")


def test_read_all_returns_types_and_other_names_of_devices(space):
    space.ip("link property add dev a0 altname uplink-0 altname enp0s1", "tuntap add dev t0 mode tun")
    devices = {one.name: one for one in space.call(everything).devices}
    assert {name: devices[name].link_type for name in ("lo", "a0", "t0")} == {"lo": 772, "a0": 1, "t0": 65534}
    assert set(devices["a0"].other_names) == {"uplink-0", "enp0s1"}
    assert devices["lo"].other_names == ()


def test_read_all_of_empty_namespace_has_defaults():
    with Namespace("empty") as space:
        found = space.call(everything)
    assert (found.tables, [one.name for one in found.devices]) == ((), ["lo"])
    assert len(found.rules) == 5


def expect_abort():
    """Turn off pytest's fault handler in this forked process: nft 1.0.6 aborts in a child of it, as expected."""
    faulthandler.disable()


def test_read_all_library_abort_is_reported(space):
    """Version 1.0.6 of nft aborts when it prints neighbouring wildcards of an anonymous set as JSON."""
    space.nft('table inet other { chain c { iifname { "w*", "x*" } accept; }; }')

    def look():
        expect_abort()
        try:
            return [table.name for table in Linux().read_all().tables]
        except Unavailable as error:
            return str(error)

    found = space.call(look)
    assert found == ["other"] or "libnftables itself" in found


OWNED = """
table inet owned {
	flags owner
	counter hits { packets 0 bytes 0; }
	set few { type ipv4_addr; flags timeout; elements = { 192.0.2.1 }; }
	map where { type ipv4_addr : verdict; elements = { 192.0.2.1 : drop }; }
	chain out { type filter hook postrouting priority 5; policy drop; ip daddr @few counter name "hits" accept; }
	chain side { ip saddr vmap @where; }
}
table netdev owned {
	flags owner
	chain out { type filter hook egress device "a0" priority 5; policy accept; }
}
"""


def look_at_owned():
    """Return the tables as read with an owner and without one."""
    expect_abort()
    found = []
    for text in (OWNED, OWNED.replace("\tflags owner\n", "")):
        holder = Nft()
        assert holder.load(text) is None
        linux = Linux()
        found.append((linux.read_all().tables, linux.table_names(), linux.read_own("owned", ("inet",), 0, ()).tables))
        holder.load("flush ruleset\n")
    return found


def test_read_all_owned_table_equals_plain_table(space):
    """Version 1.0.6 of nft stops when it lists an owned table as JSON."""
    owned, plain = space.call(look_at_owned)
    assert [table.flags for table in owned[0]] == [{"owner"}, {"owner"}]
    assert [evolve(table, flags=frozenset()) for table in owned[0]] == list(plain[0])
    assert owned[1] == plain[1] == {("inet", "owned"), ("netdev", "owned")}
    assert evolve(owned[2][0], flags=frozenset()) == plain[2][0]


def look_beside():
    expect_abort()
    holder = Nft()
    assert holder.load(OWNED) is None
    assert holder.load('table inet other { chain c { iifname { "w*", "x*" } accept; }; }\n') is None
    return Linux().read_own("owned", ("inet",), 0, ()).tables


def test_read_all_library_abort_keeps_other_tables(space):
    (found,) = space.call(look_beside)
    assert [chain.name for chain in found.chains] == ["out", "side"]
