"""Paths of frames between the devices of a machine."""

import pytest

from nftpolicy.netstate.state import Device, ports_of_devices
from nftpolicy.proof.device_paths import DevicePaths

LO = Device("lo")


def veth(name: str, peer: str, master: str | None = None) -> Device:
    return Device(name, master=master, kind="veth", link=peer)


WAN_IN_BRIDGE = (LO, Device("wan", master="br0"), Device("br0", kind="bridge"))
PAIR = (veth("v0", "v1"), veth("v1", "v0", "br0"))
# Devices, and those whose frames leave by wan: after a receipt on this machine; without one as well.
STATES: dict[str, tuple[tuple[Device, ...], list[str], list[str]]] = {
    "plain": ((LO, Device("wan"), Device("lan")), [], []),
    "bridge": (WAN_IN_BRIDGE, [], ["br0"]),
    "veth into the bridge": ((*WAN_IN_BRIDGE, *PAIR), ["v0"], ["br0", "v0"]),
    "netkit into the bridge": (
        (*WAN_IN_BRIDGE, Device("v0", kind="netkit", link="v1"), Device("v1", master="br0", kind="netkit", link="v0")),
        ["v0"],
        ["br0", "v0"],
    ),
    "two bridges": (
        (*WAN_IN_BRIDGE, Device("br1", kind="bridge"), veth("v0", "v1", "br1"), veth("v1", "v0", "br0")),
        ["br0", "br1", "v0", "v1"],
        ["br0", "br1", "v0", "v1"],
    ),
    "VLAN of a veth": (
        (*WAN_IN_BRIDGE, veth("v0", "v1"), veth("v1", "v0"), Device("v1.5", master="br0", kind="vlan", link="v1")),
        ["v0"],
        ["v0"],
    ),
    "VLAN on the veth": (
        (*WAN_IN_BRIDGE, *PAIR, Device("v0.5", kind="vlan", link="v0")),
        ["v0", "v0.5"],
        ["v0", "v0.5"],
    ),
    "macvlan siblings": (
        (
            *WAN_IN_BRIDGE,
            Device("lan"),
            Device("m0", kind="macvlan", link="lan"),
            Device("m1", master="br0", kind="macvlan", link="lan"),
        ),
        ["m0"],
        ["m0"],
    ),
    "VLAN and macvlan on the uplink": (
        (LO, Device("wan"), Device("wan.5", kind="vlan", link="wan"), Device("m0", kind="macvlan", link="wan")),
        [],
        ["wan.5", "m0"],
    ),
    "port of a bond": ((LO, Device("wan", master="bond0"), Device("bond0", kind="bond")), [], ["bond0"]),
    "veth in a bond": (
        (*WAN_IN_BRIDGE, Device("bond0", master="br0", kind="bond"), veth("v0", "v1"), veth("v1", "v0", "bond0")),
        ["v0"],
        ["v0"],
    ),
    "veth in a VRF": (
        (LO, Device("wan"), Device("red", kind="vrf"), veth("v0", "v1"), veth("v1", "v0", "red")),
        [],
        [],
    ),
    "open vSwitch": (
        (
            LO,
            Device("ovs-system", kind="openvswitch"),
            Device("br-int", master="ovs-system", kind="openvswitch"),
            Device("wan", master="ovs-system"),
            veth("v0", "v1"),
            veth("v1", "v0", "ovs-system"),
        ),
        ["v0"],
        ["br-int", "v0"],
    ),
    "peer of the uplink": ((LO, veth("wan", "o0"), veth("o0", "wan")), ["o0"], []),
    "tunnel over the uplink": ((LO, Device("wan"), Device("vx0", kind="vxlan", link="wan")), [], []),
    "bridge beside the uplink": (
        (LO, Device("wan"), Device("docker0", kind="bridge"), veth("v0", "v1"), veth("v1", "v0", "docker0")),
        [],
        [],
    ),
}


@pytest.mark.parametrize(("devices", "received", "sent"), STATES.values(), ids=STATES)
def test_device_paths_to_uplink_are_found(devices: tuple[Device, ...], received: list[str], sent: list[str]) -> None:
    paths = DevicePaths(devices)
    assert paths.received_on_the_way(("wan",)) == received
    assert set(sent) <= set(paths.sent_by(("wan",)))
    if not received:
        assert paths.sent_by(("wan",)) == sent


def test_device_paths_of_bridge_uplink_start_at_veth() -> None:
    paths = DevicePaths((*WAN_IN_BRIDGE, *PAIR))
    assert paths.received_on_the_way(("br0", "wan", "v1")) == ["v0"]


def test_veth_to_other_namespace_is_named_in_uplink_bridge_only() -> None:
    container = Device("c0", master="br0", kind="veth", link_elsewhere=True)
    assert DevicePaths((*WAN_IN_BRIDGE, container)).from_elsewhere(("wan",)) == ["c0"]
    apart = Device("c0", master="docker0", kind="veth", link_elsewhere=True)
    assert DevicePaths((*WAN_IN_BRIDGE, Device("docker0", kind="bridge"), apart)).from_elsewhere(("wan",)) == []


def test_devices_below_uplink_are_ports_and_parents() -> None:
    vlan = Device("wan.7", kind="vlan", link="bond0")
    paths = DevicePaths((vlan, Device("bond0", kind="bond"), Device("eth0", master="bond0"), Device("eth1")))
    assert paths.devices_below(("wan.7",)) == {"wan.7", "bond0", "eth0"}
    assert paths.parents(("wan.7", "eth1")) == [("wan.7", "bond0")]


@pytest.mark.parametrize("kind", ["bridge", "bond", "team"])
def test_ports_of_device_are_read_by_its_kind(kind: str) -> None:
    ports = (Device("eth1", master="up"), Device("eth0", master="up"), Device("x", master="other"))
    assert ports_of_devices((Device("up", kind=kind), *ports), ("up", "eth1")) == {"up": ("eth0", "eth1")}


def test_ports_of_vrf_are_not_its_ports() -> None:
    assert ports_of_devices((Device("red", kind="vrf"), Device("eth1", master="red")), ("red",)) == {}
