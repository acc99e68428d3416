"""Scenarios of VPN clients, and the servers that they connect to."""

import re
from collections.abc import Mapping
from pathlib import Path

from tests.lab.daemons import FOLDER, dnsmasq
from tests.lab.netns import wait_until
from tests.vpn_programs import certificate

from .outside import VPN, WEB, Outside
from .scenario import Check, Scenario

_RULESETS = Path(__file__).parents[2] / "rulesets"


def _in_tunnel(client: str) -> tuple[Check, ...]:
    """Return the checks that all traffic but that of the LAN passes the tunnel; `client` is its IPv6 address here."""
    return (
        Check("curl -s -m 3 -4 http://web.example/", r"^seen 10\.77\.0\.2$"),
        Check("curl -s -m 3 -6 http://web.example/", f"^seen {client}$"),
        Check("curl -s -m 3 http://192.168.50.2/", r"^seen 192\.168\.50\.1$"),
        Check("curl -s -m 3 'http://[2001:db8:50::2]/'", "^seen 2001:db8:50::1$"),
        Check("curl -s -m 3 http://10.77.0.1/", r"^seen 10\.77\.0\.2$"),
    )


def policy(name: str, edits: Mapping[str, str]) -> str:
    """Return a ready policy with edits: regular expression -> replacement. Each must match once."""
    text = (_RULESETS / name).read_text()
    for pattern, replacement in edits.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, (name, pattern, count)
    return text


# The LAN, the devices that this machine has, and servers in place of a file of a DHCP client.
_STATIC_EDITS = {
    r"^devices .*": 'devices = ["eth0"]',
    r"^lease .*": 'servers = ["192.0.2.1"]',
}


def wireguard_server(around: Outside) -> Mapping[str, str]:
    """Start WireGuard at vpn.example; return the configuration of the client, as providers write it."""
    space = around.internet
    keys = {}
    for end in ("server", "client"):
        private = space.run(["wg", "genkey"]).stdout.strip()
        keys[end] = private, space.run(["wg", "pubkey"], input=private).stdout.strip()
    space.popen(["wireguard-go", "wg0"], env={"WG_PROCESS_FOREGROUND": "1"})
    wait_until(lambda: space.outside("/run/wireguard/wg0.sock").exists(), 10, "wireguard-go")
    space.outside(f"{FOLDER}/key").write_text(keys["server"][0])
    peer = ["peer", keys["client"][1], "allowed-ips", "10.77.0.2/32,fd77::2/128"]
    space.run(["wg", "set", "wg0", "private-key", f"{FOLDER}/key", "listen-port", "51820", *peer])
    space.ip("addr add 10.77.0.1/24 dev wg0", "addr add fd77::1/64 dev wg0", "link set wg0 up")
    space.popen([*dnsmasq(["10.77.0.1"], {"web.example": WEB}), f"--host-record=vpn.example,{VPN[4]}"])
    client = f"""[Interface]
PrivateKey = {keys["client"][0]}
Address = 10.77.0.2/32, fd77::2/128
DNS = 10.77.0.1

[Peer]
PublicKey = {keys["server"][1]}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example:51820
"""
    return {"etc/wireguard/wg0.conf": client}


WG_QUICK = Scenario(
    name="wg-quick",
    packages=("wireguard-tools", "wireguard-go", "systemd", "systemd-resolved", "libnss-resolve"),
    policy=policy(
        "laptop-wireguard.toml",
        {
            **_STATIC_EDITS,
            r"^inside .*": 'inside = ["wg*", "eth1"]',
            r"^kernel = true\nsport .*": "group = 851",
            r"^\[service\.names\](.|\n)*": "",
        },
    ),
    serve=wireguard_server,
    files={
        "etc/systemd/system/wg-quick@.service.d/group.conf": "[Service]\nGroup=851\n"
        # libnss-resolve would have systemd-resolved look the server up.
        "InaccessiblePaths=/run/systemd/resolve/io.systemd.Resolve\n"
        "Environment=WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go\n",
        "etc/systemd/resolved.conf.d/uplink.conf": "[Resolve]\nDNS=192.0.2.1\n",
    },
    prepare="chmod 600 etc/wireguard/*\nln -sf /run/systemd/resolve/stub-resolv.conf etc/resolv.conf\n",
    events={"foreign-rule": "it says that wg-quick's rules precede those of the policy"},
    keeps={
        "src_valid_mark": "`src_valid_mark` may differ: wg-quick sets the value that the policy has already; release restores the earlier one"
    },
    start="systemctl start systemd-resolved wg-quick@wg0",
    # As reresolve-dns.sh of wireguard-tools does. `wg syncconf`, the reload of the unit, resets the mark of wg-quick.
    reload="setpriv --regid 851 --clear-groups wg set wg0 peer $(wg show wg0 peers) endpoint vpn.example:51820",
    restart="systemctl restart wg-quick@wg0",
    stop="systemctl stop wg-quick@wg0",
    works=_in_tunnel("fd77::2"),
)


def _openvpn_server(around: Outside) -> Mapping[str, str]:
    """Start OpenVPN at vpn.example; return the configuration of the client."""
    space = around.internet
    prints = {end: certificate(space, end) for end in ("server", "client")}
    words = "openvpn --dev ovpn --dev-type tun --proto udp4 --local 198.51.100.1 --topology subnet --dh none"
    words += f" --server 10.77.0.0 255.255.255.0 --server-ipv6 fd77::/64 --keepalive 2 10 --peer-fingerprint {prints['client']}"
    words += f" --cert {FOLDER}/server.crt --key {FOLDER}/server.key "
    space.popen(words.split())
    key, crt = (space.outside(f"{FOLDER}/client.{end}").read_text() for end in ("key", "crt"))
    client = f"""client
dev tun
proto udp4
remote vpn.example 1194
nobind
persist-key
persist-tun
redirect-gateway def1 ipv6
mark 4368
peer-fingerprint {prints["server"]}
<cert>
{crt}</cert>
<key>
{key}</key>
"""
    return {"etc/openvpn/client/vpn.conf": client}


OPENVPN = Scenario(
    name="openvpn",
    packages=("openvpn",),
    policy=policy("vpn-killswitch.toml", {**_STATIC_EDITS, r"^inside .*": 'inside = ["tun*", "wg*", "eth1"]'}),
    serve=_openvpn_server,
    files={"etc/systemd/system/openvpn-client@.service.d/group.conf": "[Service]\nGroup=851\n"},
    start="systemctl start openvpn-client@vpn",
    reload="systemctl kill -s HUP openvpn-client@vpn",
    restart="systemctl restart openvpn-client@vpn",
    stop="systemctl stop openvpn-client@vpn",
    # It adds the route to its server when it connects, and only if table main has a default route then.
    released="systemctl restart openvpn-client@vpn",
    works=_in_tunnel("fd77::1000"),
)
