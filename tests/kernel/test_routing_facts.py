"""Decisions of ip rules and routes, and their limits."""

import json
import re
from collections.abc import Callable

import pytest
from attrs import evolve

from nftpolicy.kernel.netlink.rtnetlink import Rtnetlink
from nftpolicy.netstate.routing import IpRule
from tests.lab import addresses as at
from tests.lab import packet_senders
from tests.lab.packet_senders import Job

from .two_link_node import MESH, NOBODY, NODE_WAN, ONLY_MESH, ONLY_WAN, WAN, TwoLinkNode, default

pytestmark = pytest.mark.kernel

Sender = Callable[[Job], None]
NAMES_THE_DEVICE = [packet_senders.udp_bound, packet_senders.udp_pktinfo, packet_senders.udp_unicast_if]
UNREACHABLE: tuple[str, set[str]] = ("ENETUNREACH", set())
families = pytest.mark.parametrize("family", at.FAMILIES)
naming = pytest.mark.parametrize("sender", NAMES_THE_DEVICE, ids=lambda sender: sender.__name__)

GUARD_NEEDED = "the guard's postrouting chain is built on the contrary; re-read what the routes alone prove"
LEAKS_MORE = "routes leak here what the design thought refused: test whether the postrouting guard catches this sender"


@pytest.fixture
def stopped(two_links: TwoLinkNode) -> TwoLinkNode:
    """The mark leads to the WAN, and an unreachable rule before main stops all other packets."""
    for family in at.FAMILIES:
        two_links.node.ip(
            default(MESH, family),
            default(WAN, family, "100"),
            f"-{family} rule add priority 100 fwmark 1/1 lookup 100",
            f"-{family} rule add priority 200 unreachable",
        )
        assert two_links.send(packet_senders.udp, family, mark=1) == ONLY_WAN, "a marked probe must be seen"
        assert two_links.send(packet_senders.udp, family) == UNREACHABLE, "the rule must stop a plain socket"
    return two_links


@naming
def test_L1_bound_ipv4_socket_ignores_unreachable_rule(stopped: TwoLinkNode, sender: Sender) -> None:
    """An unprivileged IPv4 socket that names the WAN device leaves by it although a rule says unreachable."""
    assert stopped.send(sender, 4) == ONLY_WAN, GUARD_NEEDED


@naming
def test_L1_bound_ipv6_socket_obeys_unreachable_rule(stopped: TwoLinkNode, sender: Sender) -> None:
    """The same socket is refused in IPv6."""
    assert stopped.send(sender, 6) == UNREACHABLE, LEAKS_MORE


@pytest.mark.parametrize(("sender", "family"), [(packet_senders.udp_dontroute, 4), (packet_senders.udp_mapped, 4)])
def test_L1_dontroute_and_mapped_address_obey_unreachable_rule(
    stopped: TwoLinkNode, sender: Sender, family: int
) -> None:
    """SO_DONTROUTE and IPv4-mapped addresses are refused by an unreachable rule."""
    assert stopped.send(sender, family) == UNREACHABLE, LEAKS_MORE


@pytest.mark.parametrize(
    ("sender", "family"), [(packet_senders.multicast_site, 4), (packet_senders.multicast_scope, 6)]
)
def test_L2_multicast_by_device_ignores_unreachable_rule(stopped: TwoLinkNode, sender: Sender, family: int) -> None:
    """IP_MULTICAST_IF and ff02::%wan send by the WAN although a rule says unreachable."""
    assert stopped.send(sender, family) == ONLY_WAN, GUARD_NEEDED


@naming
def test_K2_bound_ipv4_socket_needs_no_route(two_links: TwoLinkNode, sender: Sender) -> None:
    """An unprivileged IPv4 socket that names the WAN device leaves by it with no route in any table."""
    assert not two_links.node.run(["ip", "-4", "route"]).stdout, "the test itself must have no route"
    assert two_links.send(packet_senders.udp, 4) == UNREACHABLE, "without a route a plain socket must fail"
    assert two_links.send(sender, 4) == ONLY_WAN, GUARD_NEEDED


@naming
def test_K3_bound_ipv6_socket_needs_route(two_links: TwoLinkNode, sender: Sender) -> None:
    """An IPv6 socket that names the WAN device gets ENETUNREACH without a route, and leaves with one."""
    assert two_links.send(sender, 6) == UNREACHABLE, LEAKS_MORE
    two_links.node.ip(default(WAN, 6))
    assert two_links.send(sender, 6) == ONLY_WAN, "the positive control: with a route the same socket is seen"


@pytest.mark.parametrize(
    ("sender", "family"),
    [
        (packet_senders.unicast_scope, 6),
        (packet_senders.multicast_scope, 6),
        (packet_senders.multicast_site, 4),
        (packet_senders.multicast_link, 4),
        (packet_senders.broadcast_limited, 4),
    ],
)
def test_K3_link_local_multicast_broadcast_need_no_route(two_links: TwoLinkNode, sender: Sender, family: int) -> None:
    """Packets to fe80::x%wan, multicast by the device and bound 255.255.255.255 leave without a configured route."""
    assert two_links.send(packet_senders.udp, family) == UNREACHABLE, "without a route a plain socket must fail"
    assert two_links.send(sender, family) == ONLY_WAN, f"{GUARD_NEEDED}; the exemptions may be wider than needed"


@pytest.mark.parametrize("priority", [None, 100], ids=["no-rule", "prohibit-rule"])
def test_K7_unreachable_default_does_not_stop_bound_socket(two_links: TwoLinkNode, priority: int | None) -> None:
    """A bound IPv4 socket leaves despite an unreachable default, and despite a prohibit rule (plain: EACCES)."""
    two_links.node.ip("route add unreachable default metric 4278198272")
    refused = "EHOSTUNREACH"
    if priority:
        two_links.node.ip(f"rule add priority {priority} prohibit")
        refused = "EACCES"
    assert two_links.send(packet_senders.udp, 4) == (refused, set()), "the errors that `explain` names have changed"
    assert two_links.send(packet_senders.udp_bound, 4) == ONLY_WAN, GUARD_NEEDED


@families
def test_L4_gateway_lookup_obeys_ip_rules_unless_onlink(two_links: TwoLinkNode, family: int) -> None:
    """Once an unreachable rule stands before main, a route by a gateway is refused; with onlink it is taken."""
    two_links.node.ip(f"-{family} route add {at.HOME_NET[family]} dev {WAN}")
    route = f"-{family} route replace default via {at.HOME[family]} dev {WAN} table 100".split()
    assert two_links.node.run(["ip", *route], check=False).returncode == 0, "before the rule the gateway must be valid"
    two_links.node.ip(f"-{family} rule add priority 200 unreachable")
    refused = two_links.node.run(["ip", *route], check=False)
    assert re.search("invalid gateway|No route to host", refused.stderr), (
        "onlink could go from the routes of the policy"
    )
    assert two_links.node.run(["ip", *route, "onlink"], check=False).returncode == 0, (
        "routes must come before the rules"
    )


def test_L5_ipv6_link_local_needs_rule_before_unreachable(stopped: TwoLinkNode) -> None:
    """Unicast to fe80::x%wan is ENETUNREACH behind an unreachable rule, unless a rule leads fe80::/10 to main."""
    assert stopped.send(packet_senders.unicast_scope, 6) == UNREACHABLE, "the ip rule for fe80::/10 could go"
    stopped.node.ip("-6 rule add priority 50 to fe80::/10 lookup main")
    assert stopped.send(packet_senders.unicast_scope, 6) == ONLY_WAN, (
        "the ip rules must let link-local by in another way"
    )


@pytest.fixture
def netifd(two_links: TwoLinkNode) -> TwoLinkNode:
    """OpenWrt's rules for a WAN that has a table of its own."""
    net = at.HOME_NET[4]
    two_links.node.ip(
        default(WAN, 4, "10"),
        f"route add {net} dev {WAN} table 10",
        f"rule add priority 10000 from {NODE_WAN[4]} lookup 10",
        f"rule add priority 20000 to {net} lookup 10",
        "rule add priority 90001 iif lo lookup 10",
    )
    return two_links


def test_L12_netifd_rules_send_unmarked_traffic_by_wan(netifd: TwoLinkNode) -> None:
    """Unmarked traffic with netifd's rules leaves by the WAN if main has no default route or if bound to it."""
    assert netifd.send(packet_senders.udp) == ONLY_WAN, GUARD_NEEDED
    netifd.node.ip(default(MESH, 4))
    assert netifd.send(packet_senders.udp) == ONLY_MESH, "the positive control: main comes first"
    assert netifd.send(packet_senders.udp_source) == ONLY_WAN, GUARD_NEEDED


def test_L12_stop_rules_hold_unbound_sockets_only(netifd: TwoLinkNode) -> None:
    """Stop rules before netifd's hold unbound sockets; `ip route get ... oif wan` still answers the WAN."""
    assert netifd.send(packet_senders.udp) == netifd.send(packet_senders.udp_source) == ONLY_WAN, (
        "without them both must leave"
    )
    netifd.node.ip("rule add priority 2 not fwmark 1/1 lookup main", "rule add priority 3 not fwmark 1/1 unreachable")
    failing = "the stop rules do not hold here: find the rule that answers first"
    assert [netifd.send(sender) for sender in (packet_senders.udp, packet_senders.udp_source)] == [UNREACHABLE] * 2, (
        failing
    )
    answer = netifd.node.run(["ip", "route", "get", at.SERVER[4], "oif", WAN]).stdout
    assert f"dev {WAN}" in answer, GUARD_NEEDED


@families
def test_K6_ipv4_reroute_uses_uid_0(two_links: TwoLinkNode, family: int) -> None:
    """After an nft route chain has changed the mark, IPv4 is routed as uid 0, while IPv6 keeps the socket's uid."""
    for device, table in ((WAN, "101"), (MESH, "102")):
        two_links.node.ip(default(device, family, table))
    two_links.node.ip(
        default("lo", family),  # where the first look-up leads: neither of the two
        f"-{family} rule add priority 100 fwmark 2 uidrange {NOBODY}-{NOBODY} lookup 101",
        f"-{family} rule add priority 101 fwmark 2 uidrange 0-0 lookup 102",
        f"-{family} rule add priority 102 fwmark 2 unreachable",
    )
    assert two_links.send(packet_senders.udp, family, mark=2) == ONLY_WAN, (
        "a socket that is marked from the start keeps its uid"
    )
    two_links.node.nft(
        "table inet remark {\n chain output {\n  type route hook output priority -150; policy accept;\n"
        f"  udp dport {packet_senders.DISCARD} meta mark set 2\n }}\n}}\n"
    )
    expected = {4: ONLY_MESH, 6: ONLY_WAN}[family]
    assert two_links.send(packet_senders.udp, family) == expected, (
        "the model's rule for the uid at a second look-up is wrong here"
    )
    question = ["ip", "-j", f"-{family}", "route", "get", at.SERVER[family], "mark", "2", "uid", str(NOBODY)]
    (answer,) = json.loads(two_links.node.run(question).stdout)
    assert answer["dev"] == WAN, "`ip route get` knows of the second look-up here: it could serve as an oracle"


def test_rules_to_any_network_are_written_whole(two_links: TwoLinkNode) -> None:
    """Write rules to networks that begin at 0: pyroute2 leaves out a destination of 0.0.0.0 or :: without a length."""
    networks = {4: ("0.0.0.0/1", "10.0.0.0/8", "192.0.2.1/32"), 6: ("::/1", "2001:db8::/32")}
    wanted = [
        IpRule(family, 890, table=254, destination=network, iif="lo", l4proto=17, sports=(1, 65534))
        for family in at.FAMILIES
        for network in networks[family]
    ]

    def write() -> list[IpRule]:
        kernel = Rtnetlink()
        for rule in wanted:
            kernel.change_rule("add", rule)
        return [rule for family in at.FAMILIES for rule in kernel.rules(family) if rule.priority == 890]

    assert two_links.node.call(write) == wanted


def test_rule_to_all_is_added_beside_narrower_ones(two_links: TwoLinkNode) -> None:
    """The kernel takes a narrower rule for it (EEXIST), and on deletion takes the first of them."""

    def work() -> list[str]:
        kernel, to_all = Rtnetlink(), IpRule(4, 890, table=100, iif="lo", protocol=78)
        first, second, third = (evolve(to_all, destination=f"192.0.2.{number}/32") for number in (1, 2, 3))
        for rule in (first, second, to_all):
            kernel.change_rule("add", rule)
        found = [kernel.rules(4)]
        for rule in (to_all, first):
            with pytest.raises(OSError, match="File exists"):
                kernel.change_rule("add", rule)
        found.append(kernel.rules(4))
        kernel.change_rule("add", third)
        kernel.change_rule("delete", to_all)
        found.append(kernel.rules(4))
        return [" ".join(str(rule.destination) for rule in rules if rule.priority == 890) for rules in found]

    hosts = "192.0.2.1/32 192.0.2.2/32"
    assert two_links.node.call(work) == [f"None {hosts}", f"None {hosts}", f"{hosts} 192.0.2.3/32"]
