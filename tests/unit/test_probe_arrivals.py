"""Probes of forwarded packets: which are of a forward, and which must not leave."""

from ipaddress import ip_address, ip_interface, ip_network
from random import Random

import pytest

from nftpolicy.model.packet import FORWARD
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from nftpolicy.runtime.probe.arrivals import ArrivalDevice, ArrivalTest, arrival_test, covering_forward
from nftpolicy.runtime.probe.probe_types import AddressPool, ProbeFactory, explain_packet

POLICY = """
name = "router"
inside = ["docker0", "lan*"]

[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x1"
table = 1
"""
DOCKER = """
[forward.docker]
uplink = "wan"
from = ["docker0"]
source = ["172.17.0.0/16"]
ports = ["udp/4500", "tcp/443"]
to = ["192.0.2.0/24", "2001:db8:f::/48"]
"""
OPEN = """
[forward.open]
uplink = "wan"
from = ["lan*"]
"""
PUBLISH = """
[publish.web]
uplink = "wan"
port = "tcp/9-20"
to = "docker0"

[publish.game]
uplink = "wan"
port = "udp/4000"
to = "docker0"
"""
DOCKER0 = ArrivalDevice("docker0", interfaces=(ip_interface("172.17.0.1/16"), ip_interface("fe80::1/64")))
NETWORK = ip_network("172.17.0.0/16")


def policy(*parts: str) -> Policy:
    return load("".join((POLICY, *parts)).encode())[0]


def arrivals(wanted: Policy | None, arrival: ArrivalDevice = DOCKER0) -> ArrivalTest:
    pool = AddressPool(Random(1).randbytes)
    return arrival_test(wanted, arrival, [DOCKER0], ProbeFactory(pool, b"run-word"))


def titles(test: ArrivalTest, family: int) -> set[str]:
    return {probe.probe_type.title for probe in test.probes if probe.packet.family == family}


def test_no_packet_is_of_a_forward_without_one() -> None:
    for wanted in (None, policy(), policy(OPEN)):
        test = arrivals(wanted)
        assert not test.controls
        assert {probe.packet.form for probe in test.probes} == {"udp", "tcp", "echo"}


def test_forward_splits_probes_from_controls() -> None:
    wanted = policy(DOCKER)
    test = arrivals(wanted)
    assert {(control.forward, control.probe.packet.form) for control in test.controls} == {
        ("docker", "udp"),
        ("docker", "tcp"),
    }
    for control in test.controls:
        packet = control.probe.packet
        assert packet.family == 4, "the forward's source has no IPv6"
        assert ip_address(packet.source or "") in NETWORK
        assert ip_address(packet.destination) in ip_network("192.0.2.0/24")
        assert packet.dport == {"udp": 4500, "tcp": 443}[packet.form]
    assert "UDP, source in the device's network, destination of forward docker" in titles(test, 4), "a wrong port"
    assert "UDP, source in the device's network, port 4500" in titles(test, 4), "a wrong destination"
    assert "UDP, documentation source, destination of forward docker, port 4500" in titles(test, 4), "a wrong source"
    assert all(covering_forward(wanted, "docker0", probe.packet) is None for probe in test.probes)


def test_open_forward_has_control_packets_alone() -> None:
    test = arrivals(policy(OPEN), ArrivalDevice("lan7"))
    assert test.probes == ()
    assert {control.key for control in test.controls} == {("open", 4), ("open", 6)}


def test_source_of_a_forward_is_no_destination() -> None:
    inside = policy(OPEN, DOCKER)
    probe = next(control.probe for control in arrivals(inside, ArrivalDevice("lan7")).controls)
    assert covering_forward(inside, "lan7", probe.packet) == "open"
    source_of_both = policy(OPEN, DOCKER.replace("172.17.0.0/16", "198.51.100.0/24"))
    assert covering_forward(source_of_both, "lan7", probe.packet) is None


def test_address_of_the_device_is_never_a_source() -> None:
    small = policy(DOCKER.replace("172.17.0.0/16", "10.0.0.1/32"))
    test = arrivals(small, ArrivalDevice("docker0", interfaces=(ip_interface("10.0.0.1/32"),)))
    assert test.controls == ()
    assert "10.0.0.1" not in {probe.packet.source for probe in test.probes}


def test_published_port_replies_to_no_request() -> None:
    test = arrivals(policy(PUBLISH))
    replies = {(probe.packet.form, probe.packet.sport) for probe in test.probes} - {
        (form, 40000) for form in ("udp", "tcp", "echo")
    }
    assert replies == {("syn-ack", 9), ("udp", 4000)}


def test_packets_from_uplink_avoid_published_ports() -> None:
    test = arrivals(policy(PUBLISH), ArrivalDevice("eth0", "wan", (ip_interface("192.168.1.2/24"),)))
    ports = {probe.packet.form: probe.packet.dport for probe in test.probes}
    assert ports == {"udp": 9, "tcp": 21, "echo": 9}
    assert titles(test, 4) >= {"UDP to a documentation address", "UDP to the network of docker0"}
    assert all(ip_address(probe.packet.source or "") in ip_network("192.168.1.0/24") for probe in test.probes[:3])


@pytest.mark.parametrize("form", ["udp", "tcp", "echo", "syn-ack"])
def test_explained_packet_is_forwarded(form: str) -> None:
    probe = next(probe for probe in arrivals(policy(PUBLISH)).probes if probe.packet.form == form)
    packet = explain_packet(probe)
    assert packet is not None
    assert (packet.origin, packet.iif, packet.source is None) == (FORWARD, "docker0", False)
    assert (packet.flow.state == "invalid") == (form == "syn-ack")
