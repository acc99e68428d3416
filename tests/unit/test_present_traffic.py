"""Traffic of now that stops under a policy: sockets, flows and users of frames as the kernel lists them."""

import pytest

from nftpolicy.kernel.netlink.conntrack import ConntrackEntry, FlowTuple
from nftpolicy.kernel.netlink.sock_diag import RAW, TCP, UDP, InetSocket
from nftpolicy.kernel.packet_sockets import FrameUser, decode_handlers, decode_packet_sockets
from nftpolicy.kernel.socket_owners import SocketOwner
from nftpolicy.policy.load import load
from nftpolicy.runtime.present_traffic import StoppedTraffic, TrafficJudge, describe_traffic

POLICY = load(
    b"""
name   = "p"
inside = ["lan0", "tun*"]
[uplink.wan]
devices = ["wan0", "wan9"]
mark    = "1/0xf"
table   = 51
exempt  = ["arp", "mdns", "eapol", "dhcpv4"]
answer  = [{ name = "ssh", source = ["198.51.100.0/24"] }, "udp/5000", "tcp/8080",
           { name = "udp/5001", exclusive = true }]
[uplink.lte]
devices = ["lte0"]
mark    = "2/0xf"
table   = 52
answer  = ["udp/5000"]
[service.vpn]
uplink  = "wan"
group   = 800
[forward.guests]
uplink  = "wan"
from    = ["lan0"]
source  = ["10.9.0.0/24"]
ports   = ["tcp/443"]
[publish.web]
uplink  = "wan"
port    = "tcp/80"
to      = "lan0"
[lan.files]
uplink  = "wan"
to      = ["10.7.0.0/16"]
group   = 900
[lan.found]
uplink  = "wan"
to      = ["10.8.0.0/16"]
sport   = ["udp/1900"]
"""
)[0]
ADDRESSES = {"lo": ("127.0.0.1",), "wan0": ("192.0.2.7",), "lte0": ("192.0.3.7",), "lan0": ("10.9.0.1", "fd09::1")}
ROUTES = {"10.9.0.": "lan0", "192.0.3.": "lte0"}  # by the begin of the destination; the rest by `default`
NO_PEER = {"local": None, "remote": None, "dport": 0, "state": "listen"}


def inet_socket(**changes):
    fields = {
        "family": 4, "protocol": TCP, "state": "established", "local": "192.0.2.7", "sport": 40000,
        "remote": "203.0.113.5", "dport": 443, "mark": 0, "uid": 1000, "inode": 7, "cookie": 9,
    }  # fmt: skip
    return InetSocket(**(fields | changes))


def judge(gid=4711, default="wan0", selects_source=False, **tests):
    def route_device(family, destination):
        return next((device for begin, device in ROUTES.items() if destination.startswith(begin)), default)

    owners = {7: SocketOwner(812, "sshd", gid), 8: SocketOwner(813, "lldpd", 0)}
    egress_device = lambda each: route_device(4, each.remote)  # noqa: E731
    return TrafficJudge(POLICY, ADDRESSES, owners, egress_device, route_device, lambda _: selects_source, **tests)


def reasons(*sockets, **options):
    return [each.reason for each in judge(**options).stopped_sockets(sockets)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "no service of uplink wan has its user or group"),
        ({"local": "10.9.0.1"}, "no service of uplink wan"),  # by the routes of now
        ({"local": "10.9.0.1", "remote": "10.9.0.5"}, None),
        ({"bound": "lan0"}, None),
        ({"bound": "wan0", "local": "10.9.0.1", "remote": "10.9.0.5"}, "no service of uplink wan"),
        ({"remote": "192.0.2.7"}, None),  # of this machine itself
        ({"sport": 22}, "answer ssh of uplink wan is not for 203.0.113.5"),
        ({"sport": 22, "remote": "198.51.100.5"}, None),
        ({"sport": 9000}, 'answer tcp/9000 is not in the policy; add "tcp/9000" to answer of [uplink.wan]'),
        ({"sport": 8080}, None),
        ({"mark": 1}, "it has the mark 0x1/0xf, but does not belong to a service of uplink wan"),
        ({"protocol": UDP, "dport": 5353, "remote": "224.0.0.251"}, None),  # exempt
        ({"inode": 0}, None),
        ({"state": "syn-recv"}, None),
        ({"protocol": RAW}, None),
    ],
    ids=str,
)
def test_connection_that_stops_is_named(changes, reason):
    servers = [
        inet_socket(**NO_PEER | {"local": "10.9.0.1"}, sport=port, cookie=port) for port in (22, 9000)
    ]  # on an address inside, so that only the connection is named
    found = reasons(inet_socket(**changes), *servers)
    assert [text[: len(reason or "")] for text in found] == ([reason] if reason else [])


def test_connection_by_unnamed_device_stops():
    (reason,) = reasons(inet_socket(local="203.0.113.9"), default="eth7")
    assert reason == "device eth7 is in no part of the policy; add it to 'inside', or to 'devices' of an uplink"
    assert reasons(inet_socket(local="203.0.113.9"), default="tun3") == []


@pytest.mark.parametrize("mark", [0, 1])
def test_answered_connection_without_route_back_stops(mark):
    session = inet_socket(sport=8080, mark=mark)
    server = inet_socket(**NO_PEER | {"local": "10.9.0.1"}, sport=8080, cookie=8)
    (reason,) = reasons(
        session, server, has_reply_route=lambda uplink, address: (uplink, address) != ("wan", "203.0.113.5")
    )
    assert reason.startswith("its replies have no route in table 51; write 'gateways' into [uplink.wan]")
    assert reasons(session, server) == []


def test_connection_of_this_session_comes_first():
    other, own = inet_socket(), inet_socket(cookie=10, uid=1001, inode=8, sport=40001)
    found = list(judge(is_own=lambda each: each is own).stopped_sockets([other, own]))
    assert [each.is_own for each in found] == [False, True]
    assert describe_traffic(found)[0].startswith("stops under this policy: this session: lldpd (PID 813, user 1001)")


@pytest.mark.parametrize(
    ("gid", "changes", "reason"),
    [
        (800, {}, "it is of service vpn, and has no mark: start its program anew under the policy"),
        (800, {"mark": 1}, None),
        (900, {"remote": "10.7.0.9"}, None),
        (901, {"remote": "10.7.0.9"}, "no service of uplink wan has its user or group"),
    ],
)
def test_group_of_socket_decides(gid, changes, reason):
    assert [text.partition(";")[0] for text in reasons(inet_socket(**changes), gid=gid)] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sport": 23}, "tcp/23"),
        ({"sport": 23, "family": 6}, "tcp/23"),
        ({"sport": 23, "local": "192.0.2.7"}, "tcp/23"),
        ({"sport": 23, "local": "10.9.0.1"}, None),
        ({"sport": 23, "bound": "lan0"}, None),
        ({"sport": 22}, None),
        ({"sport": 80}, None),  # published
        ({"sport": 161, "protocol": UDP}, "udp/161"),
        ({"sport": 546, "protocol": UDP}, "udp/546"),
        ({"sport": 68, "protocol": UDP, "local": "192.0.2.7"}, None),  # exempt
        ({"sport": 1900, "protocol": UDP}, None),  # answers the uplink's own network
        ({"sport": 5353, "protocol": UDP}, None),
        ({"sport": 40000, "protocol": UDP}, None),
    ],
    ids=str,
)
def test_server_without_answer_is_named(changes, named):
    found = reasons(inet_socket(**NO_PEER | changes))
    assert [f'add "{named}" to answer' in text for text in found] == ([True] if named else [])


@pytest.mark.parametrize(
    ("default", "changes", "devices"),
    [
        ("tun0", {}, ["wan tun0", "lte tun0"]),
        ("tun0", {"local": "192.0.2.7"}, []),
        ("tun0", {"bound": "wan0"}, []),
        (None, {}, ["lte wan0"]),  # the first uplink's table has the default route
        ("wan0", {}, ["lte wan0"]),
    ],
    ids=str,
)
def test_wildcard_udp_server_beside_default_route_is_named(default, changes, devices):
    found = reasons(inet_socket(protocol=UDP, sport=5000, **NO_PEER | changes), default=default)
    assert reasons(inet_socket(protocol=UDP, sport=5000, **NO_PEER), default=default, selects_source=True) == []
    assert reasons(inet_socket(protocol=UDP, sport=5001, **NO_PEER), default=default) == [], "its port is exclusive"
    begins = [f"gateway of uplink {each.replace(' ', ' an address of ')}," for each in devices]
    assert [begin in text for begin, text in zip(begins, found, strict=True)] == [True] * len(devices)


def flow(source, destination, dport, protocol=TCP, to=None):
    original, reply = FlowTuple(source, 40000, destination, dport), FlowTuple(to or destination, dport, source, 40000)
    return ConntrackEntry(4, protocol, original, reply, 0, b"k", b"n")


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        (flow("10.9.0.5", "203.0.113.5", 443), None),
        (flow("10.9.0.5", "203.0.113.5", 25), '[forward.NAME] with from = ["lan0"]'),
        (flow("10.9.0.5", "203.0.113.5", 0, 1), None),  # ping, of which the entry shows no port
        (flow("10.9.0.5", "192.0.3.9", 443), "no forward of uplink lte"),
        (flow("10.9.0.5", "10.9.0.6", 25), None),
        (flow("192.0.2.7", "203.0.113.5", 25), None),  # of this machine
        (flow("203.0.113.5", "192.0.2.7", 25), None),
        (flow("203.0.113.5", "192.0.2.7", 80, to="10.9.0.5"), None),
        (flow("203.0.113.5", "192.0.2.7", 81, to="10.9.0.5"), '[publish.NAME] with port = "tcp/81"'),
        (flow("10.9.0.5", "224.0.0.5", 25), None),
        (flow("", "", 0, 47), None),
        (flow("0.0.0.0", "203.0.113.5", 25), None),  # no host has this address
    ],
    ids=str,
)
def test_flow_without_entry_in_policy_is_named(entry, advice):
    assert [advice in each.reason for each in judge().stopped_flows([entry])] == ([True] if advice else [])


def test_frames_without_exemption_are_named():
    users = [
        FrameUser(0x88CC, "wan0", 1, 8),
        FrameUser(0x88CC, "lan0", 1, 8),
        FrameUser(0x888E, "wan0", 0, 7),  # exempt
        FrameUser(0x0800, "wan0", 0, 7),
        FrameUser(3, "wan0", 0, 7),  # all frames: a capture
        FrameUser(3, "lte0", 0, 8),
        FrameUser(0x4305, "wan0", handler="batadv_batman_skb_recv"),
        FrameUser(0x9000, "wan0", 5, 99),
    ]
    assert [str(each) for each in judge().stopped_frames(users)] == [
        'lldpd (PID 813, user 1) frames of type 0x88cc by wan0: add "lldp" to exempt of [uplink.wan]',
        'lldpd (PID 813, user 0) frames of lldp by lte0: add "lldp" to exempt of [uplink.lte]',
        'the kernel (batadv_batman_skb_recv) frames of type 0x4305 by wan0: add "batman-adv" to exempt of [uplink.wan]',
        "a process of user 5 frames of type 0x9000 by wan0: no exemption is for them",
    ]


def test_recorded_lists_of_proc_are_read():
    sockets = (
        "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
        "000000009f3e4b1c 3      3    88cc   0     1 0      104    31337 \n"
    )
    assert list(decode_packet_sockets(sockets)) == [FrameUser(0x88CC, None, 104, 31337)]
    handlers = (
        "Type Device      Function\n"
        "ALL  wan0     tpacket_rcv\n"
        "88cc wan0     packet_rcv\n"
        "4305 wan0     batadv_batman_skb_recv [batman_adv]\n"
        "0800          ip_rcv\n"
        "8863 wan0     pppoe_disc_rcv\n"
    )
    found = [(each.ethertype, each.device, each.handler) for each in decode_handlers(handlers)]
    assert found == [(0x4305, "wan0", "batadv_batman_skb_recv"), (0x8863, "wan0", "pppoe_disc_rcv")]


def test_lines_are_grouped_and_limited():
    traffic = [StoppedTraffic("a", f"tcp {number}", "listens", is_live=False) for number in range(3)]
    traffic += [StoppedTraffic("b", "udp 1", f"reason {number}") for number in range(5)]
    assert describe_traffic(traffic, 2) == [
        "stops under this policy: b udp 1: reason 0",
        "stops under this policy: b udp 1: reason 1",
        "stops under this policy: and 4 more",
    ]
    assert describe_traffic(traffic[:3]) == ["stops under this policy: a tcp 0 and 2 more: listens"]
