"""Stale sockets and flows after a change of policy. Kernel part: tests/kernel/test_live_sockets.py."""

from contextlib import contextmanager
from ipaddress import ip_network

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from nftpolicy.kernel.errors import Unavailable
from nftpolicy.kernel.netlink.conntrack import Conntrack, ConntrackEntry, FlowTuple
from nftpolicy.kernel.netlink.sock_diag import ABSENT, CLOSED, NOT_SUPPORTED, TCP, UDP, InetSocket
from nftpolicy.policy import scalars
from nftpolicy.policy.mark import Mark
from nftpolicy.policy.objects import Account, Lan, Policy, Port, Resolver, Service, Uplink
from nftpolicy.runtime.apply.stale import inodes_needing_group, stale_flows, stale_sockets
from nftpolicy.runtime.apply.stale_cleanup import close_stale
from tests import policy_strategies

WAN = Uplink(("eth0",), Mark(1, 1), 1, answer=(scalars.parse_answer("ssh"),))
LTE = Uplink(("wwan0",), Mark(2, 2), 2)
VPN, MAIL = Account("vpn", 800), Account("mail", 900)
POLICY = Policy("p", ("bat0",), {"wan": WAN, "lte": LTE}, {"vpn": Service("wan", group=VPN)})
ADDRESSES = {
    "lo": ("127.0.0.1", "::1"),
    "eth0": ("192.0.2.2", "2001:db8:1::2", "198.51.100.77"),
    "bat0": ("203.0.113.2", "198.51.100.77"),
}
FAR = "198.51.100.10"


def inet_socket(**changes):
    fields = {
        "family": 4, "protocol": TCP, "state": "established", "local": "192.0.2.2", "sport": 40000, "remote": FAR,
        "dport": 443, "mark": 1, "uid": 1000, "inode": 7, "cookie": 9,
    }  # fmt: skip
    return InetSocket(**(fields | changes))


def flow(mark):
    return ConntrackEntry(
        4, 17, FlowTuple("192.0.2.2", 5, FAR, 53), FlowTuple(FAR, 53, "192.0.2.2", 5), mark, b"key", b"0001"
    )


def stale_reasons(sockets, before, after, groups=None, leads=None):
    return [one.why for one in stale_sockets(sockets, before, after, ADDRESSES, groups, leads)]


def with_wan(**changes):
    return evolve(POLICY, uplink=POLICY.uplink | {"wan": evolve(WAN, **changes)})


NO_WAN = Policy("p", ("bat0",), {"lte": LTE})


# --- (a) marks that mean nothing, or another thing ----------------------------------------------

GONE_MARK = {
    "another mark": with_wan(mark=Mark(4, 4)),
    "a mask that takes the socket's mark away": with_wan(mark=Mark(5, 5)),
    "no such uplink": NO_WAN,
    "other devices": with_wan(devices=("eth7",)),
    "the mark of another uplink": evolve(
        POLICY, uplink={"wan": evolve(WAN, mark=Mark(2, 2)), "lte": evolve(LTE, mark=Mark(1, 1))}
    ),
    "released": None,
}


@pytest.mark.parametrize("after", GONE_MARK.values(), ids=GONE_MARK)
@pytest.mark.parametrize(
    "one",
    [
        inet_socket(),
        inet_socket(mark=0x71),  # foreign bits
        inet_socket(state="syn-sent"),
        inet_socket(protocol=UDP, state="close", local=None, remote=None, dport=0),
        inet_socket(family=6, local="2001:db8:1::2", remote="2001:db8:2::1"),
    ],
    ids=str,
)
def test_socket_with_removed_mark_is_stale(one, after):
    routed_anew = after is None and not one.is_connected
    assert len(stale_reasons([one], POLICY, after)) == (0 if routed_anew else 1)


SAME_MARK = {
    "another name": evolve(POLICY, uplink={"home": WAN}, service={"vpn": Service("home", group=VPN)}),
    "one device more": with_wan(devices=("eth0", "eth1")),
    "another table": with_wan(table=9),
    "a wider mask": with_wan(mark=Mark(1, 3)),
}


@pytest.mark.parametrize("after", SAME_MARK.values(), ids=SAME_MARK)
def test_socket_with_unchanged_mark_is_not_stale(after):
    assert stale_reasons([inet_socket(), inet_socket(protocol=UDP)], POLICY, after) == []
    assert stale_flows([flow(1)], POLICY, after) == []


@pytest.mark.parametrize(
    "one",
    [
        inet_socket(mark=0),
        inet_socket(mark=None),
        inet_socket(mark=0x70),
        inet_socket(mark=2),
        inet_socket(remote="127.0.0.1", local="127.0.0.1"),
        inet_socket(remote="192.0.2.2"),  # an address of this machine
        inet_socket(bound="lo"),
        inet_socket(local="127.0.0.1", remote=None, dport=0, state="listen"),
        inet_socket(family=6, local="::1", remote=None, dport=0, protocol=UDP, state="close"),
    ],
    ids=str,
)
def test_unmarked_or_local_socket_is_not_stale(one):
    assert stale_reasons([one], POLICY, with_wan(mark=Mark(4, 4))) == []


def test_release_keeps_sockets_that_stay_on_the_uplink():
    one = inet_socket()
    assert stale_reasons([one], POLICY, None, leads=lambda _: "eth0") == []
    assert len(stale_reasons([one], POLICY, None, leads=lambda _: "bat0")) == 1
    assert len(stale_reasons([one], POLICY, None, leads=lambda _: None)) == 1
    # With another policy the guard would hold it.
    assert len(stale_reasons([one], POLICY, NO_WAN, leads=lambda _: "eth0")) == 1


# --- (b) services that are gone ------------------------------------------------------------------

TWO = evolve(POLICY, service={"vpn": Service("wan", group=VPN), "mail": Service("wan", group=MAIL)})
BY_USER = evolve(POLICY, service={"a": Service("wan", user=Account("a", 1000)), "b": Service("wan", user=MAIL)})


def test_socket_of_removed_service_is_stale():
    mail, vpn = inet_socket(inode=1), inet_socket(inode=2)
    found = stale_sockets([mail, vpn], TWO, POLICY, ADDRESSES, {1: 900, 2: 800})
    assert [one.socket for one in found] == [mail]
    assert stale_reasons([mail, vpn], TWO, POLICY) == []  # whose it is is not known: the guard drops it
    assert inodes_needing_group([mail, vpn, inet_socket(mark=0, inode=3)], TWO, POLICY) == {1, 2}


def test_user_service_needs_no_group_lookup():
    only_b = evolve(BY_USER, service={"b": BY_USER.service["b"]})
    one, other = inet_socket(uid=1000), inet_socket(uid=900)
    assert [found.socket for found in stale_sockets([one, other], BY_USER, only_b, ADDRESSES)] == [one]
    assert inodes_needing_group([one, other], BY_USER, only_b) == set()


@pytest.mark.parametrize(
    "change", [{"to": (ip_network("198.51.100.0/28"),)}, {"ports": (Port("tcp", 440, 443),)}], ids=["to", "ports"]
)
def test_socket_to_removed_destination_is_stale(change):
    narrow = evolve(POLICY, service={"vpn": evolve(POLICY.service["vpn"], **change)})
    inside = inet_socket()
    outside = inet_socket(remote="198.51.100.200", dport=444)
    found = stale_sockets([inside, outside], POLICY, narrow, ADDRESSES, {7: 800})
    assert [one.socket for one in found] == [outside]
    assert stale_reasons([inside, outside], narrow, POLICY, {7: 800}) == []


def test_answers_and_resolver_sockets_are_not_stale():
    none = evolve(POLICY, service={}, uplink={"wan": evolve(WAN, resolver=Resolver())})
    before = evolve(none, service=POLICY.service)
    ssh = inet_socket(sport=22, dport=50000)
    resolver = inet_socket(protocol=UDP, dport=53, uid=65534)
    assert stale_reasons([ssh, resolver, inet_socket(inode=0)], before, none, {7: 800}) == []
    assert len(stale_reasons([inet_socket()], before, none, {7: 800})) == 1
    unanswered = evolve(none, uplink={"wan": evolve(WAN, answer=())})
    assert len(stale_reasons([ssh], before, unanswered, {7: 800})) == 1


def test_kernel_sockets_are_recognised_by_port():
    kernel = evolve(POLICY, service={"wg": Service("wan", kernel=True, sport=(Port("udp", 51820, 51821),))})
    mine, other = (inet_socket(protocol=UDP, sport=port) for port in (51821, 51822))
    for groups in (None, {7: 800}):  # whoever it belongs to
        assert stale_reasons([mine], POLICY, kernel, groups) == []
    assert len(stale_reasons([other], POLICY, kernel, {7: 800})) == 1
    assert len(stale_reasons([inet_socket(sport=51820)], POLICY, kernel, {7: 800})) == 1  # of TCP


def test_kernel_sockets_have_no_owner():
    kernel = evolve(POLICY, service={"wg": Service("wan", kernel=True), "mail": Service("wan", group=MAIL)})
    one = inet_socket(protocol=UDP)
    assert stale_reasons([one], POLICY, kernel) == []
    assert len(stale_reasons([one], POLICY, kernel, {7: 800})) == 1


# --- (c) the first policy ------------------------------------------------------------------------

EXEMPT = evolve(POLICY, uplink={"wan": evolve(WAN, exempt=("dhcpv4-unicast", "dhcpv6", "igmp", "arp"))})
FIRST = {
    "an address of the uplink": (inet_socket(mark=0), True),
    "half open": (inet_socket(mark=0, state="syn-sent"), True),
    "IPv6": (inet_socket(mark=0, family=6, local="2001:db8:1::2", remote="2001:db8:2::1"), True),
    "UDP to a DNS server": (inet_socket(mark=0, protocol=UDP, dport=53), True),
    "bound to the uplink": (inet_socket(mark=0, local="198.51.100.77", bound="eth0"), True),
    "no mark told": (inet_socket(mark=None), True),
    "the mark": (inet_socket(mark=1), False),
    "an answer": (inet_socket(mark=0, sport=22, dport=50000), False),
    "a listener": (inet_socket(mark=0, state="listen", remote=None, dport=0), False),
    "UDP without another end": (inet_socket(mark=0, protocol=UDP, state="close", remote=None, dport=0), False),
    "an address of the mesh": (inet_socket(mark=0, local="203.0.113.2"), False),
    "an address of both": (inet_socket(mark=0, local="198.51.100.77"), False),
    "bound to another device": (inet_socket(mark=0, bound="bat0"), False),
    "this machine": (inet_socket(mark=0, remote="203.0.113.2"), False),
    "lo": (inet_socket(mark=0, local="127.0.0.1", remote="127.0.0.1"), False),
    "DHCP": (inet_socket(mark=0, protocol=UDP, sport=68, dport=67), False),
    "DHCP to a group": (inet_socket(mark=0, protocol=UDP, sport=68, dport=67, remote="239.1.2.3"), True),
    "not DHCP": (inet_socket(mark=0, protocol=UDP, sport=68, dport=68), True),
    "not DHCP either": (inet_socket(mark=0, protocol=TCP, sport=68, dport=67), True),
}


@pytest.mark.parametrize(("one", "stale"), FIRST.values(), ids=FIRST)
def test_first_policy_makes_blocked_sockets_stale(one, stale):
    assert bool(stale_reasons([one], None, EXEMPT)) == stale


@pytest.mark.parametrize("group", [800, 900, None])
def test_first_policy_makes_dns_sockets_of_service_stale(group):
    policy = evolve(POLICY, uplink={"wan": evolve(WAN, resolver=Resolver())})
    one = inet_socket(mark=0, protocol=UDP, dport=53, local="203.0.113.2")
    assert inodes_needing_group([one, inet_socket()], None, policy) == {7}
    assert bool(stale_reasons([one], None, policy, {7: group} if group else {})) == (group == 800)
    assert stale_reasons([one], None, POLICY, {7: 800}) == []


# --- (d) flows -------------------------------------------------------------------------------------


def test_only_flows_with_removed_mark_are_stale():
    flows = [flow(1), flow(0x71), flow(2), flow(0)]
    for name, after in GONE_MARK.items():
        found = [one.flow for one in stale_flows(flows, POLICY, after)]
        both = [flows[2]] if name == "the mark of another uplink" else []
        assert found == ([] if after is None else [flows[0], flows[1], *both]), name
    assert stale_flows(flows, None, POLICY) == []


def test_flow_without_key_is_never_deleted():
    # To the kernel that would be all flows.
    with Conntrack() as channel:
        for broken in (evolve(flow(1), key=b""), evolve(flow(1), number=b"")):
            with pytest.raises(ValueError, match="all of them"):
                channel.delete_flow(broken)


# --- properties --------------------------------------------------------------------------------------

ADDRESS = st.sampled_from(("192.0.2.2", "203.0.113.2", "127.0.0.1", FAR, None)) | policy_strategies.addresses().map(str)


@st.composite
def sockets(draw, *policies):
    """Generate sockets that often belong to a service or have the mark of an uplink."""
    marks = [uplink.mark.value for policy in policies for uplink in policy.uplink.values()]
    services = [service for policy in policies for service in policy.service.values()]
    uids = [service.user.number for service in services if service.user]
    one = inet_socket(
        protocol=draw(st.sampled_from((TCP, UDP))),
        state=draw(st.sampled_from(("established", "syn-sent", "listen", "close"))),
        local=draw(ADDRESS), remote=draw(ADDRESS),
        sport=draw(st.sampled_from((22, 53, 68, 40000)) | st.integers(1, 65535)),
        dport=draw(st.sampled_from((53, 67, 443)) | st.integers(1, 65535)),
        mark=draw(st.sampled_from((*marks, 0)) | st.integers(0, 2**32 - 1)),
        uid=draw(st.sampled_from((*uids, 0))), inode=draw(st.integers(0, 3)),
    )  # fmt: skip
    return evolve(one, family=6 if ":" in f"{one.local}{one.remote}" else 4)


@st.composite
def socket_tables(draw, *policies):
    groups = [one.group.number for policy in policies for one in policy.service.values() if one.group]
    known = draw(st.dictionaries(st.integers(1, 3), st.sampled_from((*groups, 0)), max_size=3))
    devices = [device for policy in policies for uplink in policy.uplink.values() for device in uplink.devices]
    addresses = {draw(st.sampled_from(devices)): ("192.0.2.2",), "bat0": ("203.0.113.2",)}
    return draw(st.lists(sockets(*policies), max_size=20)), addresses, known


# --- users who need no mark ------------------------------------------------------------------------

NEWS = Service("wan", user=Account("news", 901), marks="uid-rule")
ON_UPLINK = evolve(POLICY, service={**POLICY.service, "news": NEWS})
TO_MAIL = evolve(ON_UPLINK, service={"news": evolve(NEWS, ports=(Port("tcp", 25, 25),))})
OF_NEWS = {"uid": 901, "mark": 0}
MESH = "203.0.113.2"


@pytest.mark.parametrize(
    ("before", "after", "changes", "why"),
    [
        (None, ON_UPLINK, {}, None),
        (None, ON_UPLINK, {"local": MESH}, "user 901 is routed to uplink wan now"),
        (POLICY, ON_UPLINK, {"local": MESH}, "user 901 is routed to uplink wan now"),
        (POLICY, ON_UPLINK, {"local": MESH, "uid": 902}, None),
        (ON_UPLINK, POLICY, {}, "user 901 is not routed to uplink wan any more, or may not send there"),
        (ON_UPLINK, POLICY, {"uid": 902}, None),
        (ON_UPLINK, evolve(ON_UPLINK, name="same"), {}, None),
        (ON_UPLINK, evolve(ON_UPLINK, name="same"), {"local": MESH}, None),
        (ON_UPLINK, TO_MAIL, {}, "user 901 is not routed to uplink wan any more, or may not send there"),
        (TO_MAIL, evolve(TO_MAIL, name="same"), {}, None),  # which was dropped before, too
        (ON_UPLINK, evolve(ON_UPLINK, service={"news": evolve(NEWS, ports=(Port("tcp", 443, 443),))}), {}, None),
        (ON_UPLINK, evolve(ON_UPLINK, service={"news": evolve(NEWS, uplink="lte")}), {}, "user 901 is routed to uplink lte now"),
        (ON_UPLINK, POLICY, {"remote": None, "dport": 0}, None),
        (ON_UPLINK, POLICY, {"inode": 0}, None),
        (ON_UPLINK, None, {}, "user 901 is not routed to uplink wan any more, or may not send there"),
    ],
)  # fmt: skip
def test_sockets_of_unmarked_users_have_expected_staleness(before, after, changes, why):
    found = stale_reasons([inet_socket(**(OF_NEWS | changes))], before, after)
    assert found == ([why] if why else [])


@given(st.data(), policy_strategies.policies())
def test_equal_policy_makes_nothing_stale(data, policy):
    found, addresses, groups = data.draw(socket_tables(policy))
    same = evolve(policy, name="other")  # not so equal that nobody looks
    assert stale_sockets(found, policy, same, addresses, groups) == []
    assert stale_flows([flow(one.mark) for one in found], policy, same) == []


@given(st.data(), policy_strategies.policies())
def test_larger_policy_makes_nothing_stale(data, policy):
    less = evolve(
        policy,
        # Who needs no mark is led elsewhere by more.
        service={name: one for name, one in policy.service.items() if one.unmarked or data.draw(st.booleans())},
        uplink={
            name: evolve(one, exempt=one.exempt[1:], answer=one.answer[1:], gateways=one.gateways[1:])
            for name, one in policy.uplink.items()
        },
    )
    found, addresses, groups = data.draw(socket_tables(policy))
    assert stale_sockets(found, less, policy, addresses, groups) == []
    assert stale_flows([flow(one.mark) for one in found], less, policy) == []


@given(st.data(), policy_strategies.pairs())
def test_unmarked_socket_is_never_stale(data, pair):
    before, after = pair
    found, addresses, groups = data.draw(socket_tables(before, after))
    worn = [up.mark for up in before.uplink.values()]
    users = {one.user.number for each in pair for one in each.service.values() if one.unmarked}
    for one in stale_sockets(found, before, after, addresses, groups):
        assert any(mark.matches(one.socket.mark) for mark in worn) or one.socket.uid in users
    for one in stale_sockets(found, before, None, addresses, groups):
        assert any(mark.matches(one.socket.mark) for mark in worn) or one.socket.uid in users
    for one in stale_sockets(found, None, after, addresses, groups):
        assert one.socket.remote not in (None, "127.0.0.1")


# --- closing -----------------------------------------------------------------------------------------


class FakeRunningKernel:
    """Running kernel in memory. `result` is the return value of destroy, or its exception."""

    def __init__(self, sockets=(), flows=(), result=CLOSED, loud=None):
        self._sockets, self._flows, self._result, self._loud = list(sockets), list(flows), result, loud
        self.done = []

    def sockets(self):
        return self._sockets

    def flows(self, value, mask):
        return [one for one in self._flows if one.mark & mask == value]

    def addresses(self):
        return ADDRESSES

    def owner_groups(self, inodes):
        return dict.fromkeys(inodes, 800)

    def egress_device(self, one):
        return "bat0"

    @contextmanager
    def suppress_resets(self, marks, addresses, devices):
        self.done.append(("muffled", list(marks), sorted(addresses), sorted(devices)))
        yield self._loud
        self.done.append("loud again")

    def destroy(self, one):
        self.done.append(one)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def delete_flow(self, one):
        self.done.append(one)
        return True


def test_close_suppresses_resets_and_deletes_flows():
    tcp, udp, listener = (
        inet_socket(),
        inet_socket(protocol=UDP),
        inet_socket(state="listen", local=None, remote=None, dport=0, sport=80),
    )
    fake = FakeRunningKernel([tcp, udp, listener, inet_socket(mark=0)], [flow(1), flow(2)])
    found = close_stale(fake, POLICY, NO_WAN)
    assert fake.done == [("muffled", [(1, 1)], [], ["wwan0"]), tcp, udp, "loud again", flow(1)]
    assert found.lines() == [
        "closed 1 connection: the mark 0x1/0x1 of uplink wan is not used any more",
        "  tcp 192.0.2.2:40000 to 198.51.100.10:443, user 1000",
        "aborted 1 UDP socket: the mark 0x1/0x1 of uplink wan is not used any more",
        "  udp 192.0.2.2:40000 to 198.51.100.10:443, user 1000",
        "  a UDP socket cannot be closed from outside: its program got an error, and may still use it",
        "deleted 1 conntrack entry: the mark 0x1/0x1 of uplink wan is not used any more",
        "  udp 192.0.2.2 to 198.51.100.10, port 53",
        "left open 1 socket: the mark 0x1/0x1 of uplink wan is not used any more",
        "  tcp *:80, user 1000",
        "  listening socket: accepted connections inherit its mark; restart its program",
    ]


def test_bound_udp_socket_is_left_open():
    found = close_stale(
        FakeRunningKernel([inet_socket(protocol=UDP, bound="bat0"), inet_socket(protocol=UDP)]), POLICY, NO_WAN
    )
    assert [one.socket.bound for one in found.udp_aborted] == [None]
    assert [one.socket.bound for one, _ in found.left_open] == ["bat0"]
    assert found.lines()[-1].startswith("  bound to a device: destroying it would unbind it")


def test_many_closed_sockets_are_summarised():
    found = close_stale(FakeRunningKernel([inet_socket(sport=port) for port in range(1, 9)]), POLICY, None)
    assert found.lines()[0].startswith("closed 8 connections: ")
    assert found.lines()[-1] == "  and 3 more"


def test_kernel_without_diag_destroy_is_reported():
    found = close_stale(FakeRunningKernel([inet_socket()], result=NOT_SUPPORTED), POLICY, NO_WAN)
    assert (found.closed, found.udp_aborted, len(found.left_open)) == ((), (), 1)
    assert found.lines()[-1] == "  this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is missing)"


def test_socket_closed_meanwhile_is_not_reported():
    assert close_stale(FakeRunningKernel([inet_socket()], result=ABSENT), POLICY, NO_WAN).lines() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Unavailable("no root"), "the sockets that follow the old policy were not closed: no root"),
        (OSError(5, "Input/output error"), "  [Errno 5] Input/output error"),
    ],
)
def test_kernel_error_is_reported_and_cleanup_continues(error, words):
    fake = FakeRunningKernel([inet_socket()], [flow(1)], result=error)
    found = close_stale(fake, POLICY, NO_WAN)
    assert words in found.lines()
    assert len(found.deleted_flows) == 1  # and the rest is done


def test_failed_reset_suppression_is_reported():
    found = close_stale(FakeRunningKernel([inet_socket()], loud="no such thing"), POLICY, NO_WAN)
    assert found.errors == ("resets of closed connections may have left by other devices: no such thing",)


def test_unchanged_policy_queries_nothing():
    assert close_stale(None, POLICY, POLICY).lines() == []
    assert close_stale(None, None, None).lines() == []


@pytest.mark.parametrize(("group", "remote", "count"), [(900, FAR, 0), (901, FAR, 1), (900, "203.0.113.99", 1)])
def test_connection_of_a_lan_survives_first_policy(group, remote, count):
    lan = Lan("wan", (ip_network("198.51.100.0/24"),), group=MAIL)
    policy = evolve(POLICY, lan={"files": lan})
    one = inet_socket(mark=0, remote=remote)
    assert inodes_needing_group([one], None, policy) == {7}
    assert len(stale_reasons([one], None, policy, {7: group})) == count
