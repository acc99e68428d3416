"""Configurations of routers, as files of /etc/config, and the expected import of each."""

from attrs import Factory, frozen

LOOPBACK = """
config interface 'loopback'
	option device 'lo'
	option proto 'static'
	option ipaddr '127.0.0.1'
	option netmask '255.0.0.0'
"""
LAN = """
config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	option ipaddr '192.168.1.1/24'
"""
WAN = """
config interface 'wan'
	option device 'eth1'
	option proto 'dhcp'

config interface 'wan6'
	option device '@wan'
	option proto 'dhcpv6'
"""
ZONE = """
config zone
	option name 'wan'
	list network 'wan'
	list network 'wan6'
	option masq '1'
	option output 'ACCEPT'
"""
PLAIN = LOOPBACK + LAN + WAN


@frozen
class Case:
    """Expected pieces of text: `policy` in the policy, `said` in the report, `unsaid` in neither, `ways` in the leaks
    of today.
    """

    files: dict[str, str]
    policy: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    names: dict[str, str] = Factory(dict)  # other files of /etc
    unsaid: tuple[str, ...] = ()


CASES = {
    "dhcp": Case(
        {"network": PLAIN, "firewall": ZONE},
        ('devices = ["eth1"]', '"dhcpv4", "dhcpv6"', 'mark = "0x1/0x1"  # chosen here'),
        ("routes of IPv4 and IPv6 move from table main", "as a lease may bring them"),
        ("any program, to any address: IPv4", "any program, to any address: IPv6"),
    ),
    "line feeds and escapes in values": Case(
        {"network": LOOPBACK + LAN.replace("'br-lan'", "'br-lan'\n\toption proto 'a\nb\x1b[31m'", 1)
                    + WAN.replace("'dhcp'\n", "'dh\ncp\x01'\n")},
        ("dh?cp?",),
    ),
    "no firewall": Case({"network": PLAIN}, ('devices = ["eth1"]', 'inside = [\n  "br-lan"')),
    "static": Case(
        {"network": LOOPBACK + "config interface wan\n option device eth0.2\n option proto static\n option ipaddr 192.0.2.9\n"
                    " option netmask 255.255.255.0\n option gateway 192.0.2.1\n option ip4table 7\n"},
        ('devices = ["eth0.2"]', "table = 7", 'gateways = ["192.0.2.1"]'),
        ways=("ip rule 10000, table 7", "ip rule 20000, table 7", "ip rule 90002, table 7"),
    ),
    "pppoe": Case(
        {"network": LOOPBACK + "config interface wan\n option device eth0.7\n option proto pppoe\n option username me\n\n"
                    "config interface wan6\n option device @wan\n option proto dhcpv6\n"},
        ('devices = ["pppoe-wan", "eth0.7"]', '"pppoe"'),
        ways=("leaves by pppoe-wan",),
    ),
    "lte": Case(
        {"network": LOOPBACK + LAN + "config interface cellular\n option device /dev/cdc-wdm0\n option proto qmi\n"
                    " option apn internet\n option peerdns 0\n option ip6table 1\n"},
        ('[uplink.cellular]\ndevices = ["wwan0"]', "table = 1"),
    ),
    "two wans": Case(
        {"network": PLAIN + "config interface wanb\n option device eth2\n option proto dhcp\n",
         "firewall": ZONE.replace("'wan6'", "'wan6'\n\tlist network 'wanb'")},
        ("[uplink.wan]", "[uplink.wanb]", 'mark = "0x1/0xff"', 'mark = "0x2/0xff"', "table = 2"),
    ),
    "wan by wlan": Case(
        {"network": LOOPBACK + LAN + "config interface wwan\n option proto dhcp\n",
         "wireless": "config wifi-iface sta\n option device radio1\n option mode sta\n option network wwan\n"},
        ('devices = ["phy1-sta0"]',),
    ),
    "asked": Case(
        {"network": LOOPBACK + "config interface hotel\n option device eth9\n option proto dhcp\n"},
        ("[uplink.hotel]", 'devices = ["eth9"]'), options=("--uplink", "hotel"),
    ),
    "wireguard": Case(
        {"network": PLAIN + "config interface wg0\n option proto wireguard\n option private_key x\n option fwmark 0x1\n"
                    " option listen_port 51820\n\n"
                    "config wireguard_wg0 peer\n option endpoint_host vpn.example\n option public_key y\n\n"
                    "config wireguard_old\n option public_key z\n",
         "firewall": ZONE.replace("'wan6'", "'wan6'\n\tlist network 'wg0'")},
        ("[service.wireguard]", 'kernel = true\nsport = ["udp/51820"]\nmarks = "itself"\n', '"wg0",  # network:'),
        ("root resolves 'vpn.example'", "wireguard_old: no WireGuard interface that is up uses it"),
        unsaid=("option listen_port", "[service.wireguard-2]"),
    ),
    "wireguard without a mark and a port": Case(
        {"network": PLAIN + "config interface wg0\n option proto wireguard\n option private_key x\n"},
        ('kernel = true\nmarks = "itself"\n',),
        ("WireGuard must mark its packets: set option fwmark '0x1' (it is missing)",
         "interface 'wg0': option listen_port is missing: set one, such as '51820'"),
        unsaid=("\nsport",),
    ),
    "wireguard with and without ports": Case(
        {"network": PLAIN + "".join(f"config interface {name}\n option proto wireguard\n option fwmark 1\n{more}"
                                    for name, more in {"wg_none": "", "wg_a": " option listen_port 1194\n",
                                                       "wg_b": " option listen_port 51820\n",
                                                       "wg_same": " option listen_port '1194'\n",
                                                       "wg_zero": " option listen_port 0\n",
                                                       "wg_range": " option listen_port 5-9\n",
                                                       "wg_large": " option listen_port 65536\n",
                                                       "wg_down": " option auto 0\n"}.items())},
        ('kernel = true\nsport = ["udp/1194", "udp/51820"]\n', "[service.wireguard-2]",
         'kernel = true\nmarks = "itself"\n# TO DO, network:20: interface \'wg_none\': option listen_port is missing'),
        ("'wg_zero': option listen_port is '0', which is not a port", "is '5-9', which", "is '65536', which"),
        unsaid=("'wg_a': option", "'wg_same': option", "'wg_down': option"),
    ),
    "tunnels of the kernel and of programs": Case(
        {"network": PLAIN + "".join(f"config interface t{at}\n option proto {proto}\n\n" for at, proto in enumerate(
            ("gre", "vxlan", "6in4", "ipip", "xfrm", "l2tp", "openconnect")))
            + "config interface tin\n option proto gre\n option tunlink lan\n\n"
              "config interface tout\n option proto gre\n option tunlink wan6\n\n"
              "config interface tend\n option proto grev6\n option peer6addr 2001:db8::9\n\n"
              "config interface toff\n option proto gre\n option disabled 1\n"},
        said=("interface 't0': the kernel sends the packets of a tunnel of proto 'gre'", "proto 'vxlan'", "proto '6in4'",
              "proto 'ipip'", "interface 't4': the guard drops packets of IPsec", "interface 't5': xl2tpd runs as root",
              'ports = ["gre"], to = the address', 'ports = ["gre"], to = ["2001:db8::9"]', 'ports = ["6in4"]',
              "interface 't6': openconnect runs as root and sets no mark", "interface 'tout'"),
        unsaid=("'tin': the", "'toff': the"),
    ),
    "fastd": Case(
        {"network": PLAIN, "fastd": "config fastd mesh_vpn\n option enabled 1\n option group gluon-mesh-vpn\n"
                                    " option packet_mark 1\n\nconfig peer a\n option net mesh_vpn\n",
         "gluon-wan-dnsmasq": "config static\n list server 192.0.2.53\n list server fe80::1\n"},
        ('name = "gluon-node"', "[service.fastd]", 'group = 800\nmarks = "itself"\n', 'servers = ["192.0.2.53"]', "[uplink.wan.resolver]"),
        ("queries over TCP or to ::1 go to the mesh's resolver",),
    ),
    "fastd of root": Case(
        {"network": PLAIN, "fastd": "config fastd mesh_vpn\n option enabled 1\n"},
        ("group = 801",), ("it runs with root's group", "fastd must mark its packets"),
    ),
    "a group by its name": Case(
        {"network": PLAIN, "fastd": "config fastd a\n option group tunnels\n option packet_mark 1\n"},
        ("group = 4711",), names={"group": "root:x:0:\ntunnels:x:4711:\n"},
    ),
    "tunneldigger": Case(
        {"network": PLAIN, "tunneldigger": "config broker\n list address a.example:8942\n option enabled 1\n"
                                           " option group gluon-mesh-vpn\n option bind_interface eth1\n"},
        ("[service.tunneldigger]", 'group = 800\nmarks = "preload"\n'),
        ("sets no mark, so the guard drops its packets", "LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=1"),
    ),
    "who marks and who does not in one group": Case(
        {"network": PLAIN + "config interface vpn_selector\n option proto wgpeerselector\n option unix_group gluon-mesh-vpn\n",
         "fastd": "config fastd mesh_vpn\n option group gluon-mesh-vpn\n option packet_mark 1\n"},
        ("[service.fastd]", 'group = 800\nmarks = "preload"\n'), ("the ntpd that it calls set no mark: start it with LD",),
        unsaid=("[service.wgpeerselector]", "fastd must mark"),
    ),
    "pbr": Case(
        {"network": PLAIN, "pbr": "config pbr config\n option enabled 1\n\nconfig policy\n option interface wan\n"},
        ('mark = "0x1/0x1"',), ("pbr:1: pbr 'config': pbr routes packets of other hosts", "pbr:4: policy:"),
    ),
    "mwan3": Case(
        {"network": PLAIN + "config interface lte\n option device wwan0\n option proto dhcp\n", "firewall": ZONE,
         "mwan3": "config globals globals\n option mmx_mask 0x3F00\n\nconfig interface lte\n option enabled 1\n\n"
                  "config policy balanced\n list use_member wan_m1\n"},
        ("[uplink.wan]", "[uplink.lte]"), ("mwan3:7: policy 'balanced': mwan3 balances",),
    ),
    "mwan3 with many members": Case(
        {"network": PLAIN, "mwan3": "".join(f"config member m{n}\n option interface wan\n\n" for n in range(4))},
        (), ("mwan3:1: 4 sections 'member': mwan3 balances",), unsaid=("mwan3:4",),
    ),
    "a kill switch by an inverted rule, and other rules of the owner": Case(
        {"network": PLAIN + """
config interface 'wwan'
	option proto 'dhcp'

config rule 'kill'
	option mark '0x0/0xf000'
	option invert '1'
	option priority '800'
	option lookup '9910'

config rule 'first'
	option mark '0x8000/0xf000'
	option priority '1'
	option lookup '9910'

config rule 'all'
	option mark '0x0/0x0'
	option invert '1'
	option priority '5000'
	option lookup '9910'

config rule 'from'
	option src '10.0.0.0/8'
	option mark '0x1000/0xf000'
	option invert '1'
	option priority '5001'
	option lookup '9910'

config rule 'other'
	option mark '0x0/0x1'
	option priority '5'
	option lookup '9910'

config route 'there'
	option interface 'wan'
	option target '10.20.0.0/16'

config route 'elsewhere'
	option interface 'wan'
	option target '10.21.0.0/16'
	option table '9910'

config route 'here'
	option interface 'lan'
	option target '10.22.0.0/16'
""", "firewall": ZONE.replace("'wan6'\n", "'wan6'\n\tlist network 'wwan'\n")},
        (),
        ("interface 'wwan': its device is unknown; packets that leave by it are dropped until 'devices' of an uplink",
         "rule 'kill': mark 0x0/0xf000 with option invert matches all packets WITH a mark in the bits 0xf000",
         "rule 'kill': it stays (priority 800)",
         "rule 'first': it stays, and its priority 1 is before that of the policy (510)",
         "rule 'all': mark 0x0/0x0 with option invert matches NO packet",
         "rule 'from': option invert inverts all its conditions together, not the mark",
         "rule 'other': it stays (priority 5)",
         "route 'there': it moves with its interface to table 1, for packets with the mark 0x1/0x1",
         "route 'elsewhere': it stays in table 9910, which packets with the mark 0x1/0x1 do not use",
         "route 'here': it stays: the policy changes no route inside"),
    ),
    "answers": Case(
        {"network": PLAIN, "firewall": ZONE + """
config rule
	option src 'wan'
	option proto 'tcp'
	option dest_port '22 443 8000-8010'
	option target 'ACCEPT'

config rule
	option src wan
	option proto gre
	option target ACCEPT

config redirect
	option src wan
	option src_dport 80

config include
	option type 'restore'
	option path '/lib/x'

config rule
	option src wan
	option enabled 0
	option dest_port 9999
	option target ACCEPT
"""},
        ('"ssh"', '"https"', '"tcp/8000-8010"'),
        ("no answer entry for protocol gre", "this redirection ends", "renders NO ruleset at all"),
    ),
    "LAN hosts and a redirected port": Case(
        {"network": PLAIN, "firewall": ZONE + """
config zone
	option name 'lan'
	list network 'lan'

config forwarding
	option src 'lan'
	option dest 'wan'

config redirect
	option src 'wan'
	option src_dport '8443'
	option dest 'lan'
	option dest_ip '192.168.1.20'
	option dest_port '443'
	list proto 'tcp'

config redirect
	option enabled '0'
	option src 'wan'
	option src_dport '25'
	option dest 'lan'

config redirect
	option src 'wan'
	option src_dport '53'
	option dest_ip '203.0.113.9'
"""},
        (
            "#[forward.lan]", '#from = ["br-lan"]', "#[publish.tcp-8443]", '#port = "tcp/8443"', '#to = "br-lan"',
        ),
        (
            "no longer reach the network behind the uplink; to keep that, uncomment [forward.lan] in the draft",
            "this redirection ends; to keep that, uncomment [publish.tcp-8443] in the draft",
            "to keep that, add a table [publish.NAME], for which the configuration says too little",
        ),
        unsaid=("tcp-25",),
    ),
    "a DHCP server on the wan": Case(
        {"network": PLAIN, "dhcp": "config dhcp wan\n option interface wan\n"},
        said=("dhcp:1: dhcp 'wan': a DHCP server answers on an uplink",),
    ),
    "catch-all mark": Case(
        {"network": PLAIN.replace("'dhcpv6'", "'dhcpv6'\n\toption ip6table '9'") +
                    "config rule6\n option mark 0x0\n option lookup 9\n"},
        ("table = 9",), ("mark 0x0 is not a condition: the rule matches ALL packets",),
        ("any program, to any address: IPv6 UDP to 2001:db8:ffff::9 port 123 from a socket of user 0, group 0, "
         "mark 0x0 leaves by eth1: ip rule 1, table 9",),
    ),
    "a mark of 33 bits": Case(
        {"network": PLAIN + "config rule\n option mark 0x100000000\n option lookup 9\n"},
        said=("matches ALL packets, since netifd keeps only 32 bits of the value",),
    ),
    "values that netifd cannot read": Case(
        {"network": PLAIN + """
config rule
	option mark '!0x1/0x1'
	option lookup 1

config rule
	option mark '010'
	option lookup 'nosuch'

config rule
	option uidrange root
	option lookup 1

config rule
	option src 2001:db8::1
	option lookup 1

config rule good
	option mark 010/0xff
	option table 1

config rule backwards
	option goto 2
	option priority 3

config route
	option target default
	option interface wan

config route
	option target 198.51.100.0/24
"""},
        said=("not a mark (VALUE or VALUE/MASK)", "there is no table 'nosuch'", "uidrange 'root' is not a number",
              "use 'config rule6'", "mark 010 is octal and equals 0x8", "netifd ignores the unknown option 'table'",
              "rule 'good': neither lookup, action nor goto", "it is 5 only while",
              "goto 2 is not after priority 3", "target 'default' is not a network", "may omit the interface"),
    ),
    "names of tables": Case(
        {"network": PLAIN + "config rule\n option mark 0x10/0xf0\n option lookup vpn\n"},
        names={"iproute2/rt_tables": "100 vpn # mine\n"},
    ),
}  # fmt: skip

# Configurations that no policy comes of: the files, and the one line that is said.
BAD = {
    "no network": ({"firewall": ZONE}, "/network: missing; this file has the interfaces of the router"),
    "empty folder": ({}, "/network: missing"),
    "no wan": ({"network": LOOPBACK + LAN}, "no uplink found: no firewall zone"),
    "empty": ({"network": ""}, "no uplink found"),
    "a quote": ({"network": PLAIN + "config rule\n\toption mark '0x1\n"}, "/network:21: the quote ' is not closed"),
    "an unknown word": ({"network": "conifg interface wan\n"}, "/network:1: expected 'package', 'config', "),
    "no section": ({"network": "option device eth0\n"}, "/network:1: 'option' outside a section"),
    "two values": ({"network": "config a b\n option device eth0 eth1\n"}, "/network:2: 'option' takes a name and one"),
    "garbage": ({"network": b"\x7fELF\x02\x01\x01\x00\xff\xfe"}, "/network:1: not UTF-8 text"),
    "NUL": ({"network": b"config a\0b\n"}, "/network:1: NUL byte"),
    "garbage beside": ({"network": PLAIN, "firewall": b"\xff"}, "/firewall:1: not UTF-8 text"),
    "two types": (
        {"network": "config rule x\nconfig route x\n"},
        "/network:2: section 'x' exists already with type 'rule'",
    ),
    "a device": (
        {"network": "config interface wan\n option device 'eth 0/1'\n option device 'a/b'\n"},
        "is not a valid device name",
    ),
}
