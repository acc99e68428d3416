"""Names and addresses of the lab, each written once. Dictionaries are by address family, 4 or 6."""

from collections.abc import Mapping

FAMILIES = (4, 6)

WAN, MESH, CLIENT, TUNNEL = "br-wan", "bat0", "br-client", "mesh-vpn"  # devices of the node
WAN_PORT = "eth-wan"  # the port of br-wan, if that is a bridge

HOME = {4: "192.0.2.1", 6: "2001:db8:1::1"}  # the home's router; its LAN is what the node calls WAN
HOME_NET = {4: "192.0.2.0/24", 6: "2001:db8:1::/64"}
HOME_LINK_LOCAL = "fe80::1"
HOME_MAC = "02:00:5e:00:53:01"
HOME_BROADCAST = "192.0.2.255"
NEIGHBOUR = {4: "192.0.2.50", 6: "2001:db8:1::50"}
NEIGHBOUR_MAC = "02:00:5e:00:53:50"
NODE_WAN_MAC = "02:00:5e:00:53:02"

HOME_TO_SERVER = {4: "198.51.100.1", 6: "2001:db8:2::1"}
SERVER = {4: "198.51.100.10", 6: "2001:db8:2::10"}
SERVER_NET = {4: "198.51.100.0/25", 6: "2001:db8:2::/64"}
MESH_TO_SERVER = {4: "198.51.100.129", 6: "2001:db8:5::1"}
SERVER_TO_MESH = {4: "198.51.100.138", 6: "2001:db8:5::10"}

GATEWAY = {4: "203.0.113.1", 6: "2001:db8:3::1"}  # of the mesh
GATEWAY_MAC = "02:00:5e:00:53:11"
NODE_MESH = {4: "203.0.113.2", 6: "2001:db8:3::2"}
MESH_NET = {4: "203.0.113.0/25", 6: "2001:db8:3::/64"}
NODE_CLIENT = {4: "203.0.113.129", 6: "2001:db8:4::1"}
CLIENT_ADDRESS = {4: "203.0.113.130", 6: "2001:db8:4::2"}
CLIENT_NET = {4: "203.0.113.128/25", 6: "2001:db8:4::/64"}

PREFIX_LENGTH = {
    4: {"home": 24, "server": 25, "mesh": 25, "client": 25},
    6: {"home": 64, "server": 64, "mesh": 64, "client": 64},
}

WHO = "who.example"  # the home's DNS and the mesh's answer differently
WHO_AT_HOME = {4: "192.0.2.200", 6: "2001:db8:1::200"}
WHO_IN_MESH = {4: "203.0.113.200", 6: "2001:db8:3::200"}
VPN = "vpn.example"  # only the home's DNS knows it: it is the server

FASTD_PORT = 10000
ECHO_PORT = 7


def with_length(address: Mapping[int, str], net: str, family: int) -> str:
    """Return an address with the prefix length of one of the networks, such as "192.0.2.1/24"."""
    return f"{address[family]}/{PREFIX_LENGTH[family][net]}"
