"""Links, bridges, addresses and routes between the namespaces, as tables; DHCP and RA do the WAN's part later."""

from collections.abc import Mapping

from . import addresses as at
from .netns import Namespace, veth

_FORWARD = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}
_BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
_LINKS = (  # namespace, device, MAC address or None; the node's WAN is apart, since its device has two names
    ("home", "lan-nbr", None, "neighbour", "eth0", at.NEIGHBOUR_MAC),
    ("home", "to-server", None, "server", "to-home", None),
    ("mesh", "to-server", None, "server", "to-mesh", None),
    ("mesh", "to-node", at.GATEWAY_MAC, "node", at.MESH, None),
    ("node", at.CLIENT, None, "client", "eth0", None),
)
_ADDRESSES = (  # namespace, device, address, which prefix length
    ("home", "br-lan", at.HOME, "home"),
    ("home", "to-server", at.HOME_TO_SERVER, "server"),
    ("neighbour", "eth0", at.NEIGHBOUR, "home"),
    ("server", "to-home", at.SERVER, "server"),
    ("server", "to-mesh", at.SERVER_TO_MESH, "server"),
    ("mesh", "to-server", at.MESH_TO_SERVER, "server"),
    ("mesh", "to-node", at.GATEWAY, "mesh"),
    ("node", at.CLIENT, at.NODE_CLIENT, "client"),
    ("client", "eth0", at.CLIENT_ADDRESS, "client"),
)
_DEFAULT = dict.fromkeys(at.FAMILIES, "default")
_ROUTES = (  # namespace, destination, gateway
    ("neighbour", _DEFAULT, at.HOME),
    ("client", _DEFAULT, at.NODE_CLIENT),
    ("server", at.HOME_NET, at.HOME_TO_SERVER),
    ("server", at.MESH_NET, at.MESH_TO_SERVER),
    ("server", at.CLIENT_NET, at.MESH_TO_SERVER),
    ("mesh", at.SERVER_NET, at.SERVER_TO_MESH),
    ("mesh", at.CLIENT_NET, at.NODE_MESH),
)


def wire(spaces: Mapping[str, Namespace], wan_port: str) -> None:
    """Join the namespaces and give them their addresses; the node's WAN has none yet."""
    home, node = spaces["home"], spaces["node"]
    veth(home, "lan-node", node, wan_port, None, at.NODE_WAN_MAC)
    for a, device_a, mac_a, b, device_b, mac_b in _LINKS:
        veth(spaces[a], device_a, spaces[b], device_b, mac_a, mac_b)
    for router in ("home", "mesh", "node"):
        for key, value in _FORWARD.items():
            spaces[router].sysctl(key, value)
    node.sysctl("net/ipv4/ping_group_range", "0 65534")  # ping sockets for the groups that a user namespace has
    home.ip(
        f"link add br-lan address {at.HOME_MAC} {_BRIDGE}",
        "link set lan-node master br-lan",
        "link set lan-nbr master br-lan",
        "link set br-lan up",
        f"addr add {at.HOME_LINK_LOCAL}/64 dev br-lan",
    )
    if wan_port != at.WAN:
        node.ip(f"link add {at.WAN} address {at.NODE_WAN_MAC} {_BRIDGE}", f"link set {wan_port} master {at.WAN}")
        node.sysctl(f"net/ipv6/conf/{wan_port}/disable_ipv6", 1)  # as netifd does: a port says nothing itself
    for name, space in spaces.items():
        space.ip(*_commands(name))


def _commands(name: str) -> list[str]:
    addresses = [
        f"addr add {at.with_length(address, net, family)} dev {device}"
        for space, device, address, net in _ADDRESSES
        for family in at.FAMILIES
        if space == name
    ]
    routes = [
        f"-{family} route add {target[family]} via {gateway[family]}"
        for space, target, gateway in _ROUTES
        for family in at.FAMILIES
        if space == name
    ]
    return addresses + routes
