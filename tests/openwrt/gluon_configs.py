"""Configurations of Gluon nodes, as its upgrade scripts write them (main in August 2026), for the import."""

from tests.openwrt.router_configs import LOOPBACK, Case

WAN = (
    LOOPBACK
    + """
config interface 'wan'
	option type 'bridge'
	list ifname 'eth0'
	option proto 'dhcp'
	option peerdns '0'

config interface 'wan6'
	option ifname 'br-wan'
	option proto 'dhcpv6'
	option ip6table '1'
	option peerdns '0'

config rule6 'wan6_lookup'
	option mark '0x01/0x01'
	option lookup '1'
"""
)
MODEM = """
config interface 'cellular'
	option proto 'qmi'
	option device '/dev/cdc-wdm0'
	option disabled '{disabled}'
	option ip6table '1'
	option peerdns '0'
"""
WIRED = """
config interface 'mesh_uplink'
	option ifname 'br-wan'
	option proto 'gluon_wired'
	option vxlan '{vxlan}'

config interface 'mesh_other'
	option ifname 'lan1'
	option proto 'gluon_wired'
	option vxlan '{vxlan}'
"""
WIREGUARD = """
config interface 'wg_mesh'
	option proto 'wireguard'
	option fwmark '1'
	option listen_port '51820'

config interface 'mesh_wg_mesh'
	option ifname 'wg_mesh'
	option proto 'gluon_wireguard'
"""

GLUON_CASES = {
    "WireGuard and its clock": Case(
        {"network": WAN + WIREGUARD, "wgpeerselector": "config peer a\n option enabled 1\n option ifname wg_mesh\n"},
        ("[service.wgpeerselector]", 'group = 800\nmarks = "preload"\n', 'sport = ["udp/51820"]', '"wg_mesh",'),
        ("the ntpd that it calls set no mark: the package gluon-nftpolicy does it",),
        unsaid=("start it with LD_PRELOAD",),
    ),
    "the modem of a node is the same uplink": Case(
        {"network": WAN + MODEM.format(disabled=0)},
        ('[uplink.wan]\ndevices = ["br-wan", "wwan0"]', 'mark = "0x1/0x1"  # network:', "table = 1  # network:"),
        unsaid=("[uplink.cellular]", "interface 'cellular': its device is unknown"),
    ),
    "a modem that is off": Case(
        {"network": WAN + MODEM.format(disabled=1)}, ('devices = ["br-wan", "wwan0"]',), unsaid=("[uplink.cellular]",)
    ),
    "wired mesh in VXLAN": Case(
        {"network": WAN + WIRED.format(vxlan=1)},
        ('"vxlan-mesh"]', '"lan1",  # network:', '"vx_mesh_other",  # network:', '"vx_mesh_uplink",  # network:'),
        unsaid=("batman-adv", "respondd"),
    ),
    "wired mesh whose device has no valid name": Case(
        {"network": WAN + WIRED.format(vxlan=1).replace("mesh_other", "mesh_of_the_others")},
        ('"lan1",  # network:', '"vx_mesh_uplink",  # network:'),
        said=("'vx_mesh_of_the_others' is not a valid device name",),
    ),
    "wired mesh on bare ports": Case(
        {"network": WAN + WIRED.format(vxlan=0)},
        ('"batman-adv", "respondd"]', '"lan1",  # network:'),
        unsaid=("vxlan-mesh", "vx_mesh"),
    ),
}
