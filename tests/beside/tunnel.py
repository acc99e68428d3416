"""Tunnel of the router scenarios: WireGuard as the service, and table main leads into it."""

from collections.abc import Mapping

from .outside import WEB, Outside
from .scenario import Check
from .vpn import wireguard_server

PACKAGES = ("wireguard-tools", "wireguard-go")
FILES = {
    "etc/systemd/system/wg-quick@.service.d/group.conf": "[Service]\nGroup=851\n"
    "Environment=WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go\n"
}
POLICY = """
name = "router"
inside = ["eth1", "wg0", "br-*", "docker*", "podman*", "veth*", "virbr*", "vnet*"]

[uplink.wan]
devices = ["eth0"]
mark = "0x51/0xff"
table = 51
gateways = ["192.0.2.1", "2001:db8:1::1"]
exempt = ["arp", "ndp", "mld", "igmp"]
answer = ["ssh", "ping"]

[service.vpn]
uplink = "wan"
group = 851
"""
NO_ANSWER = "^$"
_WEB6 = f"'[{WEB[6]}]'"
START = "systemctl start wg-quick@wg0"
CUT = "systemctl stop wg-quick@wg0 && sleep 2"
# The routes are those of OpenVPN's redirect-gateway def1. `watch` moves the first one, so it may be gone.
_ROUTES = """Table = off
FwMark = 0x51
PostUp = ip route add 198.51.100.1 via 192.0.2.1 dev eth0
PostUp = for half in 0.0.0.0/1 128.0.0.0/1 ::/1 8000::/1; do ip route add $half dev wg0; done
PostDown = ip route del 198.51.100.1 || true
[Peer]"""


def serve(around: Outside) -> Mapping[str, str]:
    """Start WireGuard at vpn.example; return the client's configuration."""
    ((path, text),) = wireguard_server(around).items()
    text = text.replace("[Peer]", _ROUTES).replace("vpn.example", "198.51.100.1")
    return {path: "\n".join(line for line in text.splitlines() if not line.startswith("DNS")) + "\n"}


def fetch(address: str) -> str:
    """Return the command that asks a web server; it prints "seen ADDRESS"."""
    return f"curl -s -m 3 http://{address}/"


def in_tunnel(before: str = "", lan: bool = False) -> tuple[Check, ...]:
    """Return the checks that packets go to the internet by the tunnel; `before` is put before the commands."""
    return (
        Check(f"{before} {fetch(WEB[4])}", r"^seen 10\.77\.0\.2$", lan=lan),
        Check(f"{before} {fetch(_WEB6)}", "^seen fd77::2$", lan=lan),
    )


def by_uplink(before: str) -> tuple[Check, ...]:
    """Return the checks that packets go to the internet by the uplink while the policy is in force."""
    return (
        Check(f"{before} {fetch(WEB[4])}", r"^seen 192\.0\.2\.10$", guarded=True),
        Check(f"{before} {fetch(_WEB6)}", "^seen 2001:db8:1::10$", guarded=True),
    )
