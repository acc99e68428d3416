"""Warnings before a change: devices, this session's connections, routes of replies, parts that do not run."""

import os
from ipaddress import ip_network

import pytest
from attrs import evolve

from nftpolicy.cli import inactive_parts as parts
from nftpolicy.cli import lockout
from nftpolicy.cli.common import Failure
from nftpolicy.cli.lockout import require_confirmation
from nftpolicy.compiler.object_names import SHADOW_TABLE
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.kernel.netlink.route_mover import KernelRoute, RouteListing
from nftpolicy.kernel.socket_owners import SocketOwner
from nftpolicy.netstate.nft import Table
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply.reply_routes import has_route, routed_networks
from nftpolicy.runtime.boot_state import BootState
from nftpolicy.runtime.device_warnings import find_device_warnings, find_vrf_warnings
from nftpolicy.runtime.own_session import session_test
from nftpolicy.runtime.services import resolver_sockets
from tests.unit.test_present_traffic import inet_socket

POLICY = load(
    b"""
name = "p"
inside = ["lan0", "tun*"]
[uplink.wan]
devices = ["eth0"]
mark = "1/0xf"
table = 51
gateways = ["2001:db8::1"]
[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
"""
)[0]
LAN, LO = Device("lan0", ("10.9.0.1/24",)), Device("lo", ("127.0.0.1/8",))
WLP = Device("wlp2s0", ("192.0.2.2/24",))


def test_named_devices_are_not_warned_of():
    others = (
        Device("tun3", ("10.8.0.1/24",)),
        Device("dummy0"),
        Device("port0", ("fe80::1/64",)),
        evolve(WLP, up=False),
    )
    found = find_device_warnings(POLICY, (LO, LAN, Device("eth0", ("192.0.2.2/24",)), *others))
    assert (found.lines, found.is_misnamed) == ((), False)


def test_absent_device_is_named_with_the_unnamed_one():
    found = find_device_warnings(POLICY, (LO, LAN, WLP))
    bridge = Device("virbr0", ("192.168.122.1/24",))
    assert find_device_warnings(POLICY, (LO, LAN, bridge, WLP), {"wlp2s0"}).lines[0] == found.lines[0]
    assert found.is_misnamed
    assert found.lines == (
        "uplink.wan.devices: this machine has no device 'eth0' now (did you mean 'wlp2s0'?)",
        "device 'wlp2s0' (192.0.2.2/24) is in no part of the policy, so nothing may leave by it: add it to 'inside', "
        "or to 'devices' of an uplink",
    )


def test_absent_device_alone_is_no_wrong_name():
    found = find_device_warnings(POLICY, (LO, LAN))
    assert found.lines == ("uplink.wan.devices: this machine has no device 'eth0' now",)
    assert not found.is_misnamed


def test_alternative_name_of_device_is_explained():
    found = find_device_warnings(POLICY, (LO, evolve(WLP, other_names=("eth0",))))
    assert found.lines[0].endswith("no device 'eth0' now: it is an alternative name of 'wlp2s0'; write that")


def test_uplink_in_vrf_without_addresses_is_warned_of():
    port = Device("eth0", ("192.0.2.2/24", "fe80::1/64", "2001:db8::2/64"), master="vrf0")
    devices = (LO, LAN, port, Device("vrf0", kind="vrf"))
    assert find_device_warnings(POLICY, devices).lines == (
        "uplink.wan.addresses: 'eth0' is in the VRF 'vrf0', so packets from 192.0.2.2, 2001:db8::2 do not leave: "
        """write 'addresses = ["192.0.2.2", "2001:db8::2"]'""",
    )
    named = evolve(POLICY.uplink["wan"], addresses=(ip_network("192.0.2.0/24"),))
    (line,) = find_vrf_warnings(evolve(POLICY, uplink={"wan": named}), devices)
    assert line.endswith("""write 'addresses = ["192.0.2.0/24", "2001:db8::2"]'""")
    assert find_vrf_warnings(POLICY, (LO, LAN, evolve(port, master="br0"), Device("br0", kind="bridge"))) == []


def test_session_is_that_of_an_ancestor_or_of_ssh(monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "203.0.113.5 443 192.0.2.7 40000")
    owners = {7: SocketOwner(os.getppid(), "sshd", 0), 8: SocketOwner(999_999, "sshd", 0)}
    is_own = session_test(owners)
    assert is_own(inet_socket(sport=1))  # an ancestor's
    assert is_own(inet_socket(inode=8))
    assert not is_own(inet_socket(inode=8, sport=1))
    assert not is_own(inet_socket(remote=None))


class Routes:
    """Routes over eth0."""

    def __init__(self, *routes, too_many=()):
        self._listing = RouteListing([KernelRoute(route, b"") for route in routes], too_many)

    def list_routes(self, devices):
        return self._listing

    def addresses(self, devices):
        return {"eth0": ("192.0.2.2/24",)}


@pytest.mark.parametrize("watched", [False, True])
def test_reply_has_route_by_table_gateway_or_copy(watched):
    access = Routes(
        Route(4, 254, "192.0.2.0/24", device="eth0", protocol=2),
        Route(4, 254, "203.0.113.0/24", device="eth0", gateway="192.0.2.1", protocol=3),
        Route(4, 51, "198.51.100.0/24", device="eth0", gateway="192.0.2.1", protocol=3),
    )
    networks = routed_networks(access, POLICY, watched)["wan"]
    addresses = ("192.0.2.9", "198.51.100.9", "2001:db8:9::9", "fe80::9", "203.0.113.9", "10.0.0.9")
    assert [has_route(networks, each) for each in addresses] == [True, True, True, True, watched, False]


def test_device_with_too_many_routes_counts_as_routed():
    networks = routed_networks(Routes(too_many=(("eth0", 4),)), POLICY, False)["wan"]
    assert has_route(networks, "203.0.113.9")


def test_refusal_names_both_options():
    require_confirmation([], "nftpolicy apply p.toml")
    with pytest.raises(Failure) as refused:
        require_confirmation(["it stops", "it is absent"], "nftpolicy apply p.toml")
    assert refused.value.status == 2
    assert str(refused.value).startswith(
        "this may lock you out: it stops; it is absent\nnftpolicy: nothing was changed"
    )
    assert "'nftpolicy apply p.toml --confirm 60'" in str(refused.value) and "--yes" in str(refused.value)


def test_units_of_untried_policy_are_refused(monkeypatch):
    starts = []
    monkeypatch.setattr(
        lockout, "warn_of_lockout", lambda policy, starts_watch: starts.append(starts_watch) or ["it stops"]
    )
    monkeypatch.setattr(lockout, "applied_policy", lambda: None)
    with pytest.raises(Failure, match=r"'nftpolicy apply p\.toml --confirm 60', then 'nftpolicy confirm'"):
        lockout.require_trial(POLICY, "p.toml")
    assert starts == [True]
    monkeypatch.setattr(lockout, "applied_policy", lambda: (POLICY, None))
    lockout.require_trial(POLICY, "p.toml")


def inactive(monkeypatch, boot=BootState(), tables=(), ppid=999):
    monkeypatch.setattr("nftpolicy.runtime.boot_state.read_boot_state", lambda: boot)
    monkeypatch.setattr(os, "getppid", lambda: ppid)
    monkeypatch.setattr(resolver_sockets, "uplinks_without_resolver", lambda *_: ["wan"])
    return list(parts.inactive_parts(FakeKernel(NetState(tables)), POLICY, "my policy.toml"))


def test_parts_that_do_not_run_are_named_with_commands(monkeypatch):
    assert [line.rpartition("type: ")[2] for line in inactive(monkeypatch)] == [
        "nftpolicy watch 'my policy.toml'",
        "nftpolicy resolver 'my policy.toml' --uplink wan",
        "nftpolicy install 'my policy.toml' --enable",
    ]


def test_installed_parts_are_started_by_their_units(monkeypatch):
    boot = BootState(("nftpolicy-guard.service", "nftpolicy-watch.service"))
    watch, resolver = inactive(monkeypatch, boot)
    assert "systemctl start nftpolicy-watch.service" in watch
    assert "systemctl start nftpolicy-resolver@wan.service" in resolver
    assert inactive(monkeypatch, boot, (Table("inet", SHADOW_TABLE),)) == [resolver]
    assert inactive(monkeypatch, boot, ppid=1) == []  # a unit of the boot
