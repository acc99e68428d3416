"""Flows from before the rules of a policy. Kernel part: tests/leaks/test_earlier_flows.py."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.errors import Unavailable
from nftpolicy.kernel.netlink.conntrack import ConntrackEntry, FlowTuple
from nftpolicy.kernel.netlink.sock_diag import UDP
from nftpolicy.netstate.nft import Ct, Mangle
from nftpolicy.netstate.state import NetState
from nftpolicy.policy import scalars
from nftpolicy.policy.mark import Mark
from nftpolicy.policy.objects import Policy, Uplink
from nftpolicy.runtime.apply.earlier_flows import swept_flows, uplinks_without_history
from tests.unit.test_stale_cleanup import ADDRESSES, FAR, inet_socket

WAN = Uplink(("eth0",), Mark(1, 1), 1, answer=(scalars.parse_answer("ssh"),))
LTE = Uplink(("wwan0",), Mark(2, 2), 2)
POLICY = Policy("p", ("bat0",), {"wan": WAN, "lte": LTE})


def with_wan(**changes):
    return evolve(POLICY, uplink={"wan": evolve(WAN, **changes), "lte": LTE})


def names(before, after, observed=None):
    given = observed if observed is not None else compile_policy(before) if before else NetState()
    return sorted(uplinks_without_history(before, after, given, compile_policy(after)))


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (POLICY, POLICY, []),
        (POLICY, with_wan(answer=()), []),
        (POLICY, with_wan(devices=("eth0", "eth1")), []),
        (POLICY, evolve(POLICY, uplink={"home": WAN, "lte": LTE}), []),
        (evolve(POLICY, uplink={"wan": WAN}), POLICY, ["lte"]),
        (None, POLICY, ["lte", "wan"]),
        (POLICY, with_wan(devices=("eth7",)), ["wan"]),
        (POLICY, with_wan(mark=Mark(4, 4)), ["wan"]),
        (POLICY, with_wan(mark=Mark(1, 5)), ["wan"]),
        (
            POLICY,
            evolve(POLICY, uplink={"wan": evolve(WAN, mark=Mark(2, 2)), "lte": evolve(LTE, mark=Mark(1, 1))}),
            ["lte", "wan"],
        ),
    ],
    ids=[
        "equal", "other answers", "one device more", "another name", "one uplink more", "the first policy",
        "other devices", "another mark", "another mask", "marks exchanged",
    ],
)  # fmt: skip
def test_only_flows_of_the_same_uplink_are_believed(before, after, found):
    assert names(before, after) == found


def test_flows_without_rules_in_force_are_not_believed():
    assert names(POLICY, POLICY, NetState()) == ["lte", "wan"]


def test_flows_marked_under_other_conditions_are_not_believed():
    def each_packet(rule):
        is_flow_mark = any(isinstance(one, Mangle) and one.key == Ct("mark") for one in rule.statements)
        return evolve(rule, statements=rule.statements[-1:]) if is_flow_mark else rule

    state = compile_policy(POLICY)
    chains = tuple(
        evolve(chain, rules=tuple(map(each_packet, chain.rules))) if chain.name == "wan.arrival" else chain
        for chain in state.tables[0].chains
    )
    changed = evolve(state, tables=(evolve(state.tables[0], chains=chains), *state.tables[1:]))
    assert names(POLICY, POLICY, changed) == ["wan"]


def flow(mark, sport=40000, dport=22, protocol=6):
    there, back = FlowTuple(FAR, sport, "192.0.2.2", dport), FlowTuple("192.0.2.2", dport, FAR, sport)
    return ConntrackEntry(4, protocol, there, back, mark, b"key", b"0001")


def ssh_session(**changes):
    return inet_socket(**({"sport": 22, "dport": 40000, "mark": 0} | changes))


class FakeFlows:
    """Flows and sockets of a running kernel in memory; replies leave by `device`."""

    def __init__(self, flows=(), sockets=(), device="eth0", error=None):
        self.entries, self.connections, self.device, self.error = list(flows), list(sockets), device, error
        self.marked = []

    def flows(self, value, mask):
        if self.error:
            raise self.error
        return [one for one in self.entries if one.mark & mask == value]

    def delete_flow(self, one):
        self.entries.remove(one)
        return True

    def mark_flow(self, addresses, value, mask):
        self.marked.append((addresses, value, mask))
        return True

    def sockets(self):
        return self.connections

    def addresses(self):
        return ADDRESSES

    def egress_device(self, _):
        return self.device


def sweep(fake, meanwhile=()):
    with swept_flows(fake, {"wan": WAN}, POLICY) as report:
        fake.entries += meanwhile
    return report


def test_marked_flows_are_deleted_before_and_after_the_change():
    fake = FakeFlows([flow(1), flow(0x71), flow(2), flow(0)])
    report = sweep(fake, [flow(1, sport=9)])
    assert [one.mark for one in fake.entries] == [2, 0]
    assert report.lines() == ["deleted 3 conntrack entries: marked before these rules were loaded"]
    assert sweep(FakeFlows([flow(1)])).lines()[0].startswith("deleted 1 conntrack entry: ")
    assert sweep(FakeFlows([flow(0)])).lines() == []


def test_answered_connection_of_the_uplink_gets_the_mark():
    fake = FakeFlows([flow(1), flow(1, sport=9)], [ssh_session()])
    sweep(fake)
    assert fake.entries == [flow(1)]
    assert fake.marked == [((4, 6, FAR, 40000, "192.0.2.2", 22), 1, 1)]


@pytest.mark.parametrize(
    "entry",
    [
        ssh_session(sport=23),
        ssh_session(local="203.0.113.2"),
        ssh_session(local="198.51.100.77"),
        ssh_session(protocol=UDP),
        ssh_session(remote=None, dport=0, state="listen"),
    ],
    ids=["another port", "an address inside", "an address of two devices", "UDP", "a listener"],
)
def test_other_connection_gets_no_mark(entry):
    fake = FakeFlows([flow(1)], [entry])
    sweep(fake)
    assert (fake.entries, fake.marked) == ([], [])


def test_connection_with_replies_inside_gets_no_mark():
    fake = FakeFlows([flow(1)], [ssh_session()], device="bat0")
    sweep(fake)
    assert (fake.entries, fake.marked) == ([], [])


def test_kernel_that_lists_no_flows_is_reported():
    report = sweep(FakeFlows(error=Unavailable("no root")))
    assert report.lines() == ["flows from before these rules may carry marks of uplinks: no root"]
