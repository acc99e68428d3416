"""Scenarios of the programs that configure the uplink: its address by DHCP, IPv6 by router advertisements."""

from .scenario import Check, Scenario

_POLICY = """
name = "station"
inside = ["tun*", "wg*", "eth1"]

[uplink.network]
devices = ["eth0"]
mark = "0x1110/0x3f10"
table = 51
exempt = ["arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp"]

[uplink.network.resolver]
listen = ["127.0.0.1:5351", "[::1]:5351"]
sources = ["{source}"]

[service.updates]
uplink = "network"
group = 851
marks = "cgroup"
"""
_FOUR, _SIX = r"^seen 192\.0\.2\.10$", "^seen 2001:db8:1:"
_WORKS = (
    Check("/opt/nftpolicy run updates -- curl -s -m 3 -4 http://web.example/", _FOUR, guarded=True),
    Check("/opt/nftpolicy run updates -- curl -s -m 3 -6 http://web.example/", _SIX, guarded=True),
    Check("curl -s -m 3 -4 http://web.example/", _FOUR, guarded=False),
    Check("curl -s -m 3 -6 http://web.example/", _SIX, guarded=False),
    Check("curl -s -m 3 http://192.168.50.2/", r"^seen 192\.168\.50\.1$"),
)

NETWORKD = Scenario(
    name="systemd-networkd",
    packages=("systemd", "systemd-resolved", "libnss-resolve"),
    policy=_POLICY.format(source="networkd"),
    static=False,
    files={
        "etc/systemd/network/20-uplink.network": """[Match]
Name=eth0

[Network]
DHCP=yes
IPv6AcceptRA=yes

[RoutingPolicyRule]
From=192.168.50.0/24
Table=210
Priority=2000
"""
    },
    prepare="ln -sf /run/systemd/resolve/stub-resolv.conf etc/resolv.conf\n",
    start="systemctl start systemd-networkd systemd-resolved",
    reload="networkctl reload && networkctl reconfigure eth0",
    restart="systemctl restart systemd-networkd systemd-resolved",
    stop="systemctl stop systemd-networkd systemd-resolved",
    works=_WORKS,
    events={"restored": "networkd deletes ip rules of other programs (ManageForeignRoutingPolicyRules)"},
)

NETWORK_MANAGER = Scenario(
    name="NetworkManager",
    packages=("network-manager",),
    policy=_POLICY.format(source="networkmanager"),
    static=False,
    files={
        "etc/NetworkManager/conf.d/lan.conf": "[keyfile]\nunmanaged-devices=interface-name:eth1\n",
        "etc/NetworkManager/system-connections/uplink.nmconnection": """[connection]
id=uplink
type=ethernet
interface-name=eth0

[ipv4]
method=auto

[ipv6]
method=auto
addr-gen-mode=eui64
""",
    },
    prepare="chmod 600 etc/NetworkManager/system-connections/*\n",
    start="systemctl start NetworkManager",
    reload="systemctl reload NetworkManager && nmcli connection reload && nmcli connection up uplink",
    restart="systemctl restart NetworkManager",
    stop="systemctl stop NetworkManager",
    works=_WORKS,
)

DHCPCD = Scenario(
    name="dhcpcd",
    packages=("dhcpcd-base",),
    policy=_POLICY.format(source="dhcpcd"),
    static=False,
    files={
        "etc/systemd/system/dhcpcd.service": "[Service]\nExecStart=/usr/sbin/dhcpcd -B eth0\n"
        "ExecReload=/usr/sbin/dhcpcd -n eth0\nExecStop=/usr/sbin/dhcpcd -x eth0\nKillMode=process\n"
    },
    prepare="sed -i 's/^slaac private/slaac hwaddr/' etc/dhcpcd.conf\n",  # the same address in each machine
    start="systemctl start dhcpcd",
    reload="systemctl reload dhcpcd",
    restart="systemctl restart dhcpcd",
    stop="systemctl stop dhcpcd",
    works=_WORKS,
)

IFUPDOWN = Scenario(
    name="ifupdown",
    packages=("ifupdown", "isc-dhcp-client"),
    # The kernel itself learns the IPv6 routes.
    policy=_POLICY.format(source="dhclient").replace("table = 51", 'table = 51\nlearn = ["ra"]'),
    static=False,
    keeps={
        "eth0.accept_ra = ": "`accept_ra` of `eth0` may differ: ifupdown sets the value that the policy has already; release restores the earlier one",
        "route 6 default via fe80::1 ": "the IPv6 default route may differ: release adds it as one that the kernel renews with the next advertisement",
    },
    files={"etc/network/interfaces": "iface eth0 inet dhcp\niface eth0 inet6 auto\n    accept_ra 2\n"},
    start="ifup eth0",
    reload="dhclient -x eth0; dhclient eth0",
    restart="ifdown eth0; ifup eth0",
    stop="ifdown eth0",
    works=_WORKS,
)
