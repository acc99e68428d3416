"""Owner and verdict of sockets, and the log of the socket audit."""

import select

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.netlink.sock_diag import TCP, UDP, UDPLITE, InetSocket
from nftpolicy.kernel.socket_owners import SocketOwner
from nftpolicy.netstate.nft import NamedCounter
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Port, Service
from nftpolicy.runtime.services import socket_classifier
from nftpolicy.runtime.services.socket_classifier import (
    FORGED,
    KERNEL_PORT,
    OUTSIDE_CGROUP,
    RIGHT,
    UNANSWERED_REPLY,
    UNKNOWN,
    UNMARKED,
    WRONG_DESTINATION,
    WRONG_DEVICE,
    classify_sockets,
    inodes_to_resolve,
)
from nftpolicy.runtime.watch import socket_audit as socketwatch
from tests.lab.limits import limit

POLICY = load(
    b"""
name   = "p"
inside = ["bat0", "mesh*"]
[uplink.wan]
devices = ["eth0", "eth1"]
mark    = "0x1/0xff"
table   = 1
answer  = ["ssh"]
[uplink.wan.resolver]
user    = 700
[uplink.lte]
devices = ["wwan0"]
mark    = "0x2/0xff"
table   = 2
[service.vpn]
uplink  = "wan"
group   = 800
[service.mail]
uplink  = "wan"
user    = 900
ports   = ["tcp/25"]
to      = ["198.51.100.0/24"]
[service.news]
uplink = "wan"
user   = 901
marks  = "uid-rule"
ports  = ["tcp/119"]
[service.wg]
uplink  = "lte"
kernel  = true
"""
)[0]
ADDRESSES = {"lo": ("127.0.0.1", "::1"), "eth0": ("192.0.2.2",), "bat0": ("203.0.113.2",)}
VPN, NOBODY = 800, 4711


def inet_socket(**changes):
    fields = {
        "family": 4, "protocol": UDP, "state": "established", "local": "192.0.2.2", "sport": 40000,
        "remote": "198.51.100.10", "dport": 443, "mark": 1, "uid": 1000, "inode": 7, "cookie": 9,
    }  # fmt: skip
    return InetSocket(**(fields | changes))


UNCONNECTED = {"state": "close", "local": None, "remote": None, "dport": 0}


def verdict_of(gid=VPN, others=(), **changes):
    """Return verdict, owner and counter; None if the socket is not listed."""
    one = inet_socket(**changes)
    held = {} if gid is None else {7: SocketOwner(42, "program", gid)}
    found = [each for each in classify_sockets([one, *others], POLICY, ADDRESSES, held) if each.socket is one]
    return (found[0].verdict, found[0].owner, found[0].counter) if found else None


LISTENER = inet_socket(protocol=TCP, sport=8080, inode=8, mark=0, **(UNCONNECTED | {"state": "listen"}))
CASES = {
    "the service's, marked": ({}, (RIGHT, "vpn", "")),
    "in IPv6": ({"family": 6, "local": "2001:db8::2", "remote": "2001:db8::1"}, (RIGHT, "vpn", "")),
    "of another protocol": ({"protocol": UDPLITE}, (RIGHT, "vpn", "")),
    "marked, with bits of others": ({"mark": 0x501}, (RIGHT, "vpn", "")),
    "not connected": (UNCONNECTED, (RIGHT, "vpn", "")),
    "bound to the uplink's second device": ({"bound": "eth1"}, (RIGHT, "vpn", "")),
    "the program forgot": ({"mark": 0}, (UNMARKED, "vpn", "wan.dropped")),
    "it forgot, and has sent nothing": ({"mark": 0, **UNCONNECTED}, (UNMARKED, "vpn", "wan.dropped")),
    "it has only other bits": ({"mark": 0x500}, (UNMARKED, "vpn", "wan.dropped")),
    "bits beside the mark": ({"mark": 3}, (UNMARKED, "vpn", "wan.dropped")),
    "its question for a name": ({"mark": 0, "dport": 53}, (RIGHT, "vpn", "")),
    "the mark of another uplink": ({"mark": 2}, (FORGED, "", "lte.unentitled")),
    "nobody's mark": ({"gid": NOBODY}, (FORGED, "", "wan.unentitled")),
    "root's mark": ({"gid": 0, "uid": 0}, (FORGED, "", "wan.unentitled")),
    "nobody's, without": ({"gid": NOBODY, "mark": 0}, None),
    "bound to a device inside": ({"bound": "mesh7"}, (WRONG_DEVICE, "vpn", "wan.stray")),
    "bound to another uplink": ({"bound": "wwan0"}, (WRONG_DEVICE, "vpn", "wan.stray")),
    "bound to a device that nobody named": ({"bound": "usb0"}, (WRONG_DEVICE, "vpn", "unnamed-device")),
    "bound to lo": ({"bound": "lo"}, None),
    "to this machine": ({"remote": "127.0.0.1", "mark": 0}, None),
    "to an address of this machine": ({"remote": "203.0.113.2", "mark": 0}, None),
    "bound to a loopback address": ({**UNCONNECTED, "local": "::1", "mark": 0}, None),
    "of a user": ({"uid": 900, "gid": NOBODY, "protocol": TCP, "dport": 25}, (RIGHT, "mail", "")),
    "to another port": (
        {"uid": 900, "gid": NOBODY, "protocol": TCP, "dport": 26}, (WRONG_DESTINATION, "mail", "wan.unentitled")),
    "over another protocol": ({"uid": 900, "gid": NOBODY, "dport": 25}, (WRONG_DESTINATION, "mail", "wan.unentitled")),
    "to another network": (
        {"uid": 900, "gid": NOBODY, "protocol": TCP, "dport": 25, "remote": "192.0.2.9"},
        (WRONG_DESTINATION, "mail", "wan.unentitled")),
    "where the group may, but not the user": ({"uid": 900}, (RIGHT, "vpn", "")),
    "of a user, to nobody yet": ({"uid": 900, "gid": NOBODY, **UNCONNECTED}, (RIGHT, "mail", "")),
    "a user's question for a name": ({"uid": 900, "gid": None, "dport": 53}, (RIGHT, "mail", "")),
    "the resolver's question": ({"uid": 700, "gid": 700, "dport": 53}, (RIGHT, "resolver", "")),
    "the resolver before it asks": ({"uid": 700, "gid": 700, **UNCONNECTED}, (RIGHT, "resolver", "")),
    "another thing of the resolver": ({"uid": 700, "gid": 700}, (FORGED, "", "wan.unentitled")),
    "an answer": ({"gid": 0, "protocol": TCP, "sport": 22}, (RIGHT, "answer", "")),
    "a reply that is no answer": (
        {"gid": 0, "protocol": TCP, "sport": 8080, "others": [LISTENER]}, (UNANSWERED_REPLY, "", "wan.unanswered")),
    "a marked listener": ({"gid": 0, "protocol": TCP, **UNCONNECTED, "state": "listen"}, None),
    "the service's listener": (
        {"mark": 0, "protocol": TCP, **UNCONNECTED, "state": "listen"}, (RIGHT, "vpn", "")),
    "WireGuard": ({"mark": 2, "gid": None, "uid": 0, **UNCONNECTED}, (RIGHT, "wg", "")),
    "the kernel over TCP": ({"mark": 2, "gid": None, "protocol": TCP}, (UNKNOWN, "", "")),
    "of a process that can't be seen": ({"gid": None}, (UNKNOWN, "", "")),
    "of a user who needs no mark": (
        {"uid": 901, "gid": NOBODY, "mark": 0, "protocol": TCP, "dport": 119}, (RIGHT, "news", "")),
    "of such a user, elsewhere": ({"uid": 901, "gid": NOBODY, "mark": 0}, (WRONG_DESTINATION, "news", "wan.unentitled")),
    "of such a user, bound inside": (
        {"uid": 901, "gid": NOBODY, "mark": 0, "bound": "bat0"}, (WRONG_DEVICE, "news", "wan.stray")),
    "of such a user, bound to another uplink": (
        {"uid": 901, "gid": NOBODY, "mark": 0, "bound": "wwan0"}, (WRONG_DEVICE, "news", "lte.dropped")),
    "of such a user, to nobody yet": ({"uid": 901, "gid": NOBODY, "mark": 0, **UNCONNECTED}, (RIGHT, "news", "")),
    "of such a user, marked": (
        {"uid": 901, "gid": NOBODY, "protocol": TCP, "dport": 119}, (RIGHT, "news", "")),
    "closed by its program": ({"inode": 0}, None),
    "half open": ({"state": "syn-recv"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_socket_has_expected_verdict(name):
    changes, expected = CASES[name]
    assert verdict_of(**changes) == expected


def test_listening_service_in_the_mesh_is_right():
    one = inet_socket(protocol=TCP, sport=8080, mark=0)
    listener = evolve(LISTENER, inode=7)
    found = classify_sockets([one, listener], POLICY, ADDRESSES, {7: SocketOwner(1, "d", VPN)})
    assert [each.verdict for each in found] == [RIGHT, RIGHT]


@pytest.mark.parametrize(("cgroup", "verdict"), [(5, RIGHT), (6, RIGHT), (7, OUTSIDE_CGROUP), (None, RIGHT)])
def test_cgroup_service_verdict_depends_on_the_cgroup(cgroup, verdict):
    found = classify_sockets(
        [inet_socket(cgroup=cgroup)], POLICY, ADDRESSES, {7: SocketOwner(1, "d", VPN)}, {"vpn": {5, 6}}
    )
    assert [one.verdict for one in found] == [verdict]


def test_wrong_sockets_are_sorted_first():
    sockets = [inet_socket(cookie=1), inet_socket(cookie=2, mark=0), inet_socket(cookie=3, inode=9)]
    held = {7: SocketOwner(1, "vpn", VPN), 9: SocketOwner(2, "bad", NOBODY)}
    found = classify_sockets(sockets, POLICY, ADDRESSES, held)
    assert [one.verdict for one in found] == [FORGED, UNMARKED, RIGHT]


def test_named_counters_exist_and_verdicts_have_meanings():
    (table, _) = compile_policy(POLICY).tables
    counters = {one.name for one in table.counters if isinstance(one, NamedCounter)}
    for _, expected in CASES.values():
        if expected and expected[2]:
            assert expected[2] in counters
    assert {expected[0] for _, expected in CASES.values() if expected} | {OUTSIDE_CGROUP, KERNEL_PORT} == {
        RIGHT,
        *socket_classifier.MEANINGS,
    }


def test_socket_on_kernel_port_has_verdict_kernel_port():
    ports = (Port("udp", 51820, 51820),)
    lent = evolve(POLICY, service={**POLICY.service, "wg": Service("wan", kernel=True, sport=ports)})
    cases = ((51820, UDP, KERNEL_PORT, "wg"), (51821, UDP, FORGED, ""), (51820, TCP, FORGED, ""))
    for sport, protocol, verdict, who in cases:
        one = inet_socket(sport=sport, protocol=protocol)
        (seen,) = classify_sockets([one], lent, ADDRESSES, {7: SocketOwner(1, "x", NOBODY)})
        assert (seen.verdict, seen.owner, bool(seen.counter)) == (verdict, who, verdict == FORGED)


def test_description_of_forged_socket_has_expected_text():
    (one,) = classify_sockets([inet_socket()], POLICY, ADDRESSES, {7: SocketOwner(1, "x", NOBODY)})
    assert one.description == (
        "it has the mark 0x1/0xff, but does not belong to a service of uplink wan; "
        "its packets to that uplink are dropped and counted as wan.unentitled"
    )
    assert one.process_label == "x/1"
    assert one.as_json()["gid"] == NOBODY


def test_only_relevant_inodes_are_resolved():
    sockets = [
        inet_socket(inode=1),
        inet_socket(inode=2, mark=0),
        inet_socket(inode=3, remote="127.0.0.1"),
        inet_socket(inode=0),
    ]
    assert inodes_to_resolve(sockets, POLICY, ADDRESSES) == {1, 2}
    users = evolve(POLICY, service={"mail": POLICY.service["mail"]})
    assert inodes_to_resolve([*sockets, inet_socket(inode=4, mark=0, uid=900)], users, ADDRESSES) == {1, 4}


# --- the watch ------------------------------------------------------------------------------------


class FakeKernel:
    """Sockets in memory."""

    def __init__(self, world):
        self._world = world

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def sockets(self):
        if self._world.trouble:
            raise OSError(self._world.trouble)
        return self._world.sockets

    def addresses(self):
        return ADDRESSES

    def cgroup_numbers(self, paths):
        return {path: set() for path in paths}

    def socket_owners(self, inodes):
        return {inode: SocketOwner(inode, "program", NOBODY) for inode in inodes}


class AuditRun:
    """Socket audit with a clock of the test. The worker process is waited for."""

    def __init__(self):
        self.sockets, self.trouble, self.said, self.clock, self.looks = [], "", [], 100.0, 0
        self.watch = socketwatch.SocketAudit(self, self, select.poll())

    def live_sockets(self):
        return FakeKernel(self)

    def new_kernel(self):
        return self

    def log_event(self, event, facts):
        self.said.append((event, facts))

    def now(self):
        return self.clock

    def turn(self, policy=POLICY, seconds=11.0):
        """Let the time pass, and do what is due."""
        self.said.clear()
        self.clock += seconds
        self.watch.process(policy)
        self.looks += self.watch._worker is not None
        while errand := self.watch._worker:
            # The worker gives way to other programs (nice 5).
            assert select.select([errand.descriptor], [], [], limit(60))[0]
            self.watch.process(policy)
        assert {event for event, _ in self.said} <= {"socket", "failed"}
        return [facts for _, facts in self.said]


def forged(number):
    return inet_socket(inode=number, cookie=number)


def test_wrong_socket_and_its_end_are_reported_once():
    audit = AuditRun()
    audit.sockets = [forged(1)]
    (reports,) = audit.turn()
    assert (reports["verdict"], reports["program"], reports["pid"], reports["counter"]) == (
        FORGED,
        "program",
        1,
        "wan.unentitled",
    )
    assert audit.turn() == []
    audit.sockets = [forged(2)]
    new, gone = audit.turn()
    assert (new["pid"], gone["pid"], gone["verdict"], gone["was"]) == (2, 1, "gone", FORGED)
    audit.sockets = []
    assert [one["verdict"] for one in audit.turn()] == ["gone"]
    assert audit.turn() == []


def test_many_wrong_sockets_are_summarised():
    audit = AuditRun()
    audit.sockets = [forged(number) for number in range(1, 5000)]
    reports = audit.turn()
    assert len(reports) == socketwatch.MAX_LOG_LINES + 1
    assert reports[-1] == {"verdict": FORGED, "more": 1000 - socketwatch.MAX_LOG_LINES}
    assert audit.turn() == []


def test_audit_is_paced_and_needs_a_policy():
    audit = AuditRun()
    assert audit.watch.due(None) is None
    assert audit.turn(None) == []
    assert audit.looks == 0
    audit.turn()
    assert (audit.looks, audit.watch.due(POLICY)) == (1, audit.clock + socketwatch.MIN_PAUSE)
    audit.turn(seconds=1)
    assert audit.looks == 1
    audit.turn(seconds=socketwatch.MIN_PAUSE)
    assert audit.looks == 2
    audit.turn(evolve(POLICY, name="other"), seconds=1)
    assert audit.looks == 3, "another policy is another judgement"


def test_audit_failure_is_reported_once():
    audit = AuditRun()
    audit.trouble = "no sockets today"
    (reports,) = audit.turn()
    assert "no sockets today" in reports["why"]
    assert audit.turn() == []
    audit.trouble = ""
    audit.sockets = [forged(1)]
    assert [one["verdict"] for one in audit.turn()] == [FORGED]


def test_cancelled_audit_leaves_no_child():
    audit = AuditRun()
    audit.watch.process(POLICY)
    assert audit.watch._worker is not None
    audit.watch.cancel()
    assert audit.watch._worker is None
