"""Errors of policy files: one line, with file, line and key, and the source line with carets."""

import tomllib

import pytest

from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load

GOOD = """\
name = "p"
inside = ["bat0", "mesh*"]

[uplink.wan]
devices = ["eth0"]
mark = "0x1/0xff"
table = 7
exempt = ["arp"]
answer = ["ssh"]
gateways = ["192.0.2.1"]

[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
servers = ["192.0.2.53"]
user = 77

[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0xff"
table = 8

[uplink.lte.resolver]
listen = ["[::1]:55"]
lease = "/run/lte.dns"

[service.vpn]
uplink = "wan"
group = 800
marks = "itself"
to = ["198.51.100.0/24"]
ports = ["udp/10000-10010"]

[service.dns]
uplink = "lte"
user = 900

[service.wg]
uplink = "lte"
kernel = true
sport = ["udp/51820"]
"""
GOOD_ELSEWHERE = GOOD.replace('"eth0"', '"wan-here"')  # no machine has this device, so `check` names no traffic

# Text of the good policy -> replacement, the key, and a part of the message.
LAN = 'sport = ["udp/51820"]\n'  # the end of the good policy
NAS = LAN + '[lan.nas]\nuplink = "wan"\nto = ["192.168.1.0/24"]\n'

BAD = [
    # tables `lan`
    (LAN, NAS.replace('["192.168.1.0/24"]', "[]"), "lan.nas.to", "needs the uplink's own networks"),
    (LAN, NAS.replace("192.168.1.0/24", "192.168.0.0/15"), "lan.nas.to[0]", "could reach any host; use a service"),
    (LAN, NAS.replace("192.168.1.0/24", "2001:db8::/32"), "lan.nas.to[0]", "could reach any host; use a service"),
    (LAN, NAS.replace("192.168.1.0/24", "224.0.1.1"), "lan.nas.to[0]", "could reach any host; use a service"),
    (LAN, NAS.replace("192.168.1.0/24", "ff0e::1") + 'sport = ["udp/137"]\n', "lan.nas.to[0]", "could reach any host"),
    (LAN, NAS.replace("192.168.1.0/24", "192.168.0.0/15") + 'sport = ["udp/137"]\n', "lan.nas.to[0]", "a length of at least 16"),
    (LAN, NAS.replace("192.168.1.0/24", "2a00::/32") + 'sport = ["udp/137"]\n', "lan.nas.to[0]", "a length of at least 48"),
    (LAN, NAS.replace("192.168.1.0/24", "100.64.0.0/10"), "lan.nas.to[0]", "could reach any host; use a service"),
    (LAN, NAS.replace("[lan.", "[service."), "service.nas", "for any program and the uplink's own network, use [lan.NAME]"),
    (LAN, NAS + "user = 5\ngroup = 6\n", "lan.nas", "has 'group' and 'user'"),
    (LAN, NAS.replace('"wan"', '"wam"'), "lan.nas.uplink", "unknown uplink 'wam'"),
    (LAN, NAS + 'ports = ["tcp/445"]\nsport = ["udp/137"]\n', "lan.nas.sport", "excludes 'ports'; make two tables"),
    (LAN, NAS + 'sport = ["udp/137", "tcp/139"]\n', "lan.nas.sport[1]", "tcp/139 is not UDP"),
    (LAN, NAS + 'ports = ["tcp/445", "tcp/445"]\n', "lan.nas.ports[1]", "is listed twice"),
    # the wrong type, for each kind of key
    ('name = "p"', "name = 5", "name", "expected a string in quotes, got a number ('5')"),
    ('["bat0", "mesh*"]', '"bat0"', "inside", "expected a list in [ ], got a string"),
    ('["bat0", "mesh*"]', '["bat0", 3]', "inside[1]", "expected a string"),
    ('devices = ["eth0"]', 'devices = "eth0"', "uplink.wan.devices", "expected a list"),
    ('devices = ["eth0"]', "devices = [true]", "uplink.wan.devices[0]", "a boolean ('True')"),
    ('mark = "0x1/0xff"', "mark = 1", "uplink.wan.mark", 'expected a mark such as "0x1/0x1", got'),
    ("table = 7", 'table = "7"', "uplink.wan.table", "expected a whole number, got a string ('7')"),
    ("table = 7", "table = 7.5", "uplink.wan.table", "a decimal number ('7.5')"),
    ("table = 7", "table = true", "uplink.wan.table", "a boolean"),
    ("table = 7", "table = 1979-05-27", "uplink.wan.table", "a date ('1979-05-27')"),
    ('exempt = ["arp"]', 'learn = ["rs"]', "uplink.wan.learn[0]", "'rs' is not a valid source of routes; use ra"),
    ('exempt = ["arp"]', 'learn = ["ra", "ra"]', "uplink.wan.learn[1]", "is listed twice"),
    ('exempt = ["arp"]', "exempt = {}", "uplink.wan.exempt", "got a table"),
    ('exempt = ["arp"]', "exempt = [[]]", "uplink.wan.exempt[0]", "got a list"),
    ('answer = ["ssh"]', 'answer = [{name = "shs", source = ["192.0.2.0/24"]}]', "uplink.wan.answer[0].name", "(did you mean 'ssh'?)"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh", source = []}]', "uplink.wan.answer[0].source", "names no network; write the name alone"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh", from = []}]', "uplink.wan.answer[0].from", "unknown key; known are name, source, exclusive"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh", source = ["127.0.0.1"]}]', "uplink.wan.answer[0].source[0]", "no request arrives from 127.0.0.1/32"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh"}]', "uplink.wan.answer[0]", "'source' is missing"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh", source = ["192.0.2.1", "192.0.2.1"]}]', "uplink.wan.answer[0].source[1]", "is listed twice"),
    ('answer = ["ssh"]', 'answer = ["tcp/22", {name = "ssh", source = ["::1"]}]', "uplink.wan.answer[1]", "is listed twice"),
    ('answer = ["ssh"]', 'answer = ["tftp"]', "uplink.wan.answer[0]", "the conntrack helper 'tftp', which the guard does not rely on"),
    ('answer = ["ssh"]', 'answer = ["vrrp"]', "uplink.wan.answer[0]", 'to = ["224.0.0.18", "ff02::12"]'),
    ('exempt = ["arp"]', 'exempt = ["ospf"]', "uplink.wan.exempt[0]", "'ospf' has no ports; write a [lan.NAME]"),
    ('answer = ["ssh"]', 'answer = [{name = "ssh", exclusive = true}]', "uplink.wan.answer[0].exclusive", "is only for UDP ports"),
    ('answer = ["ssh"]', 'answer = [{name = "udp/65535", exclusive = true}]', "uplink.wan.answer[0].exclusive", "port 65535"),
    ('answer = ["ssh"]', 'answer = [{name = "ping", exclusive = true}]', "uplink.wan.answer[0].exclusive", "is only for UDP ports"),
    ('answer = ["ssh"]', "answer = [22]", "uplink.wan.answer[0]", "expected a string"),
    ('["192.0.2.1"]', "[5]", "uplink.wan.gateways[0]", "expected a string"),
    ('listen = ["127.0.0.1:54"]', "listen = 54", "uplink.wan.resolver.listen", "expected a list"),
    ('servers = ["192.0.2.53"]', "servers = [{}]", "uplink.wan.resolver.servers[0]", "expected a string"),
    ("user = 77", "user = []", "uplink.wan.resolver.user", "expected the number of a user (0 to 4294967294), got a list"),
    ("user = 77", "user = -1", "uplink.wan.resolver.user", "expected the number of a user"),
    ("group = 800", "group = 4294967295", "service.vpn.group", "expected the number of a group"),
    ("group = 800", "group = false", "service.vpn.group", "a boolean"),
    ("kernel = true", "kernel = 1", "service.wg.kernel", "expected true or false, got a number"),
    ('uplink = "wan"', "uplink = 3", "service.vpn.uplink", "expected a string"),
    ('marks = "itself"', "marks = 3", "service.vpn.marks", "expected a string"),
    ('to = ["198.51.100.0/24"]', "to = [1]", "service.vpn.to[0]", "expected a string"),
    ('ports = ["udp/10000-10010"]', "ports = [10000]", "service.vpn.ports[0]", "expected a string"),
    ('lease = "/run/lte.dns"', "lease = 5", "uplink.lte.resolver.lease", "expected a string"),
    ("[service.wg]\n", "[service]\nwg = 5\n[service.no]\n", "service.wg", "expected a table, got a number"),
    ("[uplink.wan.resolver]\n", "resolver = 1\n[uplink.x.resolver]\n", "uplink.wan.resolver", "expected a table"),
    ("kernel = true", f"kernel = 0x{'f' * 5000}", "service.wg.kernel", "expected true or false, got a number (0xfff"),
    # unknown keys, at each level
    ('name = "p"', 'name = "p"\nInside = []', "Inside", "(did you mean 'inside'?); known are name, inside, uplink"),
    ("table = 7", "table = 7\ntabel = 1", "uplink.wan.tabel", "unknown key (did you mean 'table'?)"),
    ("user = 77", "usr = 77", "uplink.wan.resolver.usr", "unknown key (did you mean 'user'?)"),
    ("group = 800", "groups = 800", "service.vpn.groups", "unknown key (did you mean 'group'?)"),
    ('name = "p"', 'name = "p"\n"a\\nb" = 1', "'a\\nb'", "unknown key"),
    ('name = "p"', f'name = "p"\n{"k" * 99999} = 1', "'" + "k" * 60 + "...'", "unknown key"),
    # invalid values of single keys
    ('name = "p"', 'name = "5p"', "name", "'5p' is not a valid name; use a letter"),
    ('name = "p"', 'name = "p; flush ruleset"', "name", "is not a valid name"),
    ('name = "p"', f'name = "{"x" * 9999}"', "name", "x...' is not a valid name"),
    ("[service.wg]", '[service."w g"]', "service.'w g'", "'w g' is not a valid name"),
    ('["bat0", "mesh*"]', '["*"]', "inside[0]", "'*' matches every device"),
    ('["bat0", "mesh*"]', '[""]', "inside[0]", "'' is not a valid device name"),
    ('["eth0"]', '["eth*"]', "uplink.wan.devices[0]", "is a pattern, which only 'inside' accepts"),
    ('["eth0"]', '["eth0\\"; drop"]', "uplink.wan.devices[0]", "is not a valid device name"),
    ('["eth0"]', '["a234567890123456"]', "uplink.wan.devices[0]", "is not a valid device name"),
    ('exempt = ["arp"]', 'exempt = ["apr"]', "uplink.wan.exempt[0]", "(did you mean 'arp'?)"),
    ('answer = ["ssh"]', 'answer = ["shs"]', "uplink.wan.answer[0]", "(did you mean 'ssh'?)"),
    ('answer = ["ssh"]', 'answer = ["tcp/0"]', "uplink.wan.answer[0]", "is not a valid service to answer"),
    ('answer = ["ssh"]', 'answer = ["tcp/80 from 10.0.0.0/8"]', "uplink.wan.answer[0]", "for some networks only, { name ="),
    ('marks = "itself"', 'marks = "self"', "service.vpn.marks", "(did you mean 'itself'?)"),
    ('marks = "itself"', 'marks = "preloaded"', "service.vpn.marks", "(did you mean 'preload'?)"),
    ('marks = "itself"', 'marks = "uid-rule"', "service.vpn.marks", "ip rules match users, not groups; use 'user'"),
    ("kernel = true", 'kernel = true\nmarks = "uid-rule"', "service.wg.marks", "so \"uid-rule\" cannot mark them"),
    ('["192.0.2.1"]', '["192.0.2.300"]', "uplink.wan.gateways[0]", "expected an IPv4 or IPv6 address"),
    ('["192.0.2.1"]', '["fe80::1%eth0"]', "uplink.wan.gateways[0]", "without '%' and a device"),
    ('["192.0.2.1"]', '["::ffff:192.0.2.1"]', "uplink.wan.gateways[0]", "is IPv4 in IPv6 notation; write 192.0.2.1"),
    ('["192.0.2.53"]', '["fe80::1"]', "uplink.wan.resolver.servers[0]", 'needs its device: "fe80::1%DEVICE"'),
    ('["192.0.2.53"]', '["0.0.0.0"]', "uplink.wan.resolver.servers[0]", "cannot be the address of a DNS server"),
    ('["198.51.100.0/24"]', '["198.51.100.1/24"]', "service.vpn.to[0]", "host bits set"),
    ('["198.51.100.0/24"]', '["2001:db8::%a/64"]', "service.vpn.to[0]", "without '%' and a device"),
    ('["198.51.100.0/24"]', '["::192.0.2.0/120"]', "service.vpn.to[0]", "is IPv4 in IPv6 notation; write 192.0.2.0"),
    ('["198.51.100.0/24"]', '["vpn.example.org"]', "service.vpn.to[0]", "is a name, and DNS decides which addresses it has"),
    ('["198.51.100.0/24"]', '["localhost."]', "service.vpn.to[0]", "write the addresses (getent ahosts NAME lists them)"),
    ('["udp/10000-10010"]', '["udp/2-1"]', "service.vpn.ports[0]", "the lower one first"),
    ('["udp/10000-10010"]', '["sctp/1"]', "service.vpn.ports[0]", "expected a port such as"),
    *(
        ('["127.0.0.1:54"]', f'["{bad}"]', "uplink.wan.resolver.listen[0]", words)
        for bad, words in [
            ("127.0.0.1", 'expected "127.0.0.1:54" or "[::1]:54"'),
            ("::1:54", "expected"),
            ("[[::1]]:54", "expected"),
            ("[::1:54", "expected"),
            ("127.0.0.1:\u0665\u0664", "expected"),
            ("127.0.0.1:\u00b2", "expected"),
            ("127.0.0.1:0", "a port is 1 to 65535"),
            ("127.0.0.1:99999", "a port is 1 to 65535"),
            ("0.0.0.0:54", "would be open to the network"),
            ("[fe80::1%eth0]:54", "expected"),
        ]
    ),
    # marks
    ('mark = "0x1/0xff"', 'mark = "0x100/0xff"', "uplink.wan.mark", "bits outside its mask"),
    ('mark = "0x1/0xff"', 'mark = "0x0/0xff"', "uplink.wan.mark", "matches unmarked packets; set at least one bit"),
    ('mark = "0x1/0xff"', 'mark = "0"', "uplink.wan.mark", "matches unmarked packets; set at least one bit"),
    ('mark = "0x1/0xff"', 'mark = "0x1/0xff/1"', "uplink.wan.mark", "expected a mark such as"),
    ('mark = "0x1/0xff"', 'mark = "4294967296"', "uplink.wan.mark", "a mark has 32 bits"),
    ('mark = "0x2/0xff"', 'mark = "0x3/0x2"', "uplink.lte.mark", "bits outside"),
    ('mark = "0x2/0xff"', 'mark = "0x1/0x3"', "uplink.lte.mark", "overlaps with the mark of uplink 'wan': fwmark 0x1 matches both 0x1/0xff and 0x1/0x3"),
    # validation across fields
    *(("table = 7", f"table = {n}", "uplink.wan.table", "is reserved by the kernel") for n in (0, 253, 254, 255)),
    ("table = 7", "table = 7853", "uplink.wan.table", "is nftpolicy's own, for DNS queries"),
    ("table = 7", "table = 4294967296", "uplink.wan.table", "from 1 to 4294967295"),
    ("table = 7", "table = -1", "uplink.wan.table", "from 1 to 4294967295"),
    ("table = 8", "table = 7", "uplink.lte.table", "uplink 'wan' already uses table 7"),
    ('["wwan0"]', '["eth0"]', "uplink.lte.devices[0]", "is already a device of uplink 'wan'"),
    ('["wwan0"]', '["mesh1"]', "uplink.lte.devices[0]", "'mesh1' matches 'mesh*' of 'inside'"),
    ('["wwan0"]', '["bat0"]', "uplink.lte.devices[0]", "'bat0' matches 'bat0' of 'inside'"),
    ('["wwan0"]', '["lo"]', "uplink.lte.devices[0]", "'lo' cannot be an uplink"),
    ('["wwan0"]', '["all"]', "uplink.lte.devices[0]", "'all' cannot be a device name"),
    ('["wwan0"]', "[]", "uplink.lte.devices", "at least one device"),
    ('["wwan0"]', '["w1", "w1"]', "uplink.lte.devices[1]", "already"),
    ('exempt = ["arp"]', 'exempt = ["arp", "ndp", "arp"]', "uplink.wan.exempt[2]", "is listed twice"),
    ('answer = ["ssh"]', 'answer = ["ssh", "ping", "ping"]', "uplink.wan.answer[2]", "is listed twice"),
    ('answer = ["ssh"]', 'answer = ["http", "tcp/80"]', "uplink.wan.answer[1]", "is listed twice"),
    ('["192.0.2.1"]', '["192.0.2.1", "192.0.2.1"]', "uplink.wan.gateways[1]", "is listed twice"),
    ('["192.0.2.1"]', '["127.0.0.1"]', "uplink.wan.gateways[0]", "cannot be a gateway"),
    ('["bat0", "mesh*"]', '["bat0", "bat0"]', "inside[1]", "is listed twice"),
    ('["192.0.2.53"]', '["192.0.2.53:0"]', "uplink.wan.resolver.servers[0]", "a port is 1 to 65535"),
    ('["192.0.2.53"]', '["192.0.2.53#5353"]', "uplink.wan.resolver.servers[0]", 'write a port as "192.0.2.1:5353"'),
    ('["192.0.2.53"]', '["9.9.9.9@853#dns.example"]', "uplink.wan.resolver.servers[0]", "TLS as \"tls://192.0.2.53#"),
    ('["192.0.2.53"]', '["[fe80::1]:54"]', "uplink.wan.resolver.servers[0]", 'needs its device: "fe80::1%DEVICE"'),
    ('["192.0.2.53"]', '["[192.0.2.53"]', "uplink.wan.resolver.servers[0]", "expected an IPv4 or IPv6 address"),
    ("user = 77", '[uplink.wan.resolver.domains]\n"Corp.example" = []', "uplink.wan.resolver.domains.'Corp.example'", "write it in lower case"),
    ("user = 77", '[uplink.wan.resolver.domains]\n"*.corp" = []', "uplink.wan.resolver.domains.'*.corp'", "without '*'"),
    ("user = 77", '[uplink.wan.resolver.domains]\n"corp/#" = []', "uplink.wan.resolver.domains.'corp/#'", "is not a valid domain"),
    ("user = 77", "domains = { corp = [] }", "uplink.wan.resolver.domains.corp", "names no server"),
    ("user = 77", 'domains = { corp = "192.0.2.1" }', "uplink.wan.resolver.domains.corp", "expected a list"),
    ("user = 77", 'domains = { corp = ["::1:x"] }', "uplink.wan.resolver.domains.corp[0]", "expected an IPv4 or IPv6 address"),
    ("user = 77", 'domains = { corp = ["192.0.2.1", "192.0.2.1:53"] }', "uplink.wan.resolver.domains.corp[1]", "is listed twice"),
    ("user = 77", 'domains = ["corp"]', "uplink.wan.resolver.domains", "expected a table, got a list"),
    ('["192.0.2.53"]', '["tls://192.0.2.53"]', "uplink.wan.resolver.servers[0]", "needs the name in its certificate"),
    ('["192.0.2.53"]', '["tls://192.0.2.53#"]', "uplink.wan.resolver.servers[0]", '"tls://192.0.2.53#dns.example"'),
    ('["192.0.2.53"]', '["tls://dns.example#dns.example"]', "uplink.wan.resolver.servers[0]", "expected an IPv4 or IPv6 address"),
    ('["192.0.2.53"]', '["tls://192.0.2.53#d.example", "192.0.2.1"]', "uplink.wan.resolver.servers[1]", "a query could leave without TLS"),
    ('servers = ["192.0.2.53"]', 'domains = { corp = ["tls://192.0.2.53#d.example"] }', "uplink.wan.resolver.domains", "needs 'servers', too"),
    ('["192.0.2.53"]', '["192.0.2.53", "192.0.2.53"]', "uplink.wan.resolver.servers[1]", "is listed twice"),
    ('["198.51.100.0/24"]', '["198.51.100.0/24", "198.51.100.0/255.255.255.0"]', "service.vpn.to[1]", "twice"),
    ('["udp/10000-10010"]', '["udp/5", "udp/5"]', "service.vpn.ports[1]", "is listed twice"),
    ('["[::1]:55"]', '["127.0.0.1:54"]', "uplink.lte.resolver.listen[0]", "is already used by the resolver of uplink 'wan'"),
    ('["[::1]:55"]', '["[::1]:53"]', "uplink.lte.resolver.listen[0]", "choose another port"),
    ('["[::1]:55"]', '["[::1]:55", "127.0.0.1:56"]', "uplink.lte.resolver.listen", "the same port on all its addresses"),
    ('["[::1]:55"]', '["[::1]:55", "[::2]:55"]', "uplink.lte.resolver.listen[1]", "one address per family, and [::1]:55 is already listed"),
    ('["[::1]:55"]', "[]", "uplink.lte.resolver.listen", "needs an address"),
    ("user = 77", "user = 0", "uplink.wan.resolver.user", "cannot run as root"),
    ("user = 77", 'lease = "/x"', "uplink.wan.resolver.lease", "excludes 'servers'; remove one of them"),
    ("user = 77", 'sources = ["ra"]', "uplink.wan.resolver.sources", "excludes 'servers'; remove one of them"),
    ('lease = "/run/lte.dns"', 'lease = "/x"\nsources = ["ra"]', "uplink.lte.resolver.sources", "excludes 'lease'; remove one of them"),
    ('lease = "/run/lte.dns"', 'sources = ["ra", "ra"]', "uplink.lte.resolver.sources[1]", "is listed twice"),
    ('lease = "/run/lte.dns"', 'sources = ["dhclinet"]', "uplink.lte.resolver.sources[0]", "(did you mean 'dhclient'?)"),
    ('lease = "/run/lte.dns"', 'sources = ["ra", "auto"]', "uplink.lte.resolver.sources[1]", "'auto' includes every source"),
    ('lease = "/run/lte.dns"', 'sources = "ra"', "uplink.lte.resolver.sources", "expected a list in [ ]"),
    ('uplink = "wan"', 'uplink = "wen"', "service.vpn.uplink", "unknown uplink 'wen' (did you mean 'wan'?); known are wan, lte"),
    ("group = 800", "group = 0", "service.vpn.group", "group 0 matches every process of root"),
    ("group = 800", "user = 0", "service.vpn.user", 'or write user = "root" and marks = "cgroup"'),
    ('group = 800\nmarks = "itself"', 'marks = "cgroup"\ncgroup = "a/b"', "service.vpn", 'for a unit that runs as root, add user = "root"'),
    ("group = 800", "group = 800\nuser = 801", "service.vpn", "exactly one of 'group', 'user' and 'kernel"),
    ("group = 800\n", "", "service.vpn", "exactly one of"),
    ("kernel = true", "kernel = true\nports = ['udp/1']", "service.wg.ports[0]", "look like those of other programs"),
    ("kernel = true", "kernel = true\nports = ['tcp/50-60']", "service.wg.ports[0]", "the kernel sends no DNS queries"),
    ("kernel = true", "kernel = true\nports = ['tcp/60000-65535']", "service.wg.ports[0]", "an ip rule takes no port above 65534"),
    ('kernel = true\nsport = ["udp/51820"]', "kernel = true\nports = ['tcp/2049']", "service.wg", "'to' is missing: the kernel's tcp/2049"),
    ("kernel = true", "kernel = true\nports = ['ping']", "service.wg.ports[0]", "run the program with a group or user"),
    ('["udp/10000-10010"]', '["pings"]', "service.vpn.ports[0]", "or ping, ipip, 6in4, gre, esp, l2tp (did you mean 'ping'?)"),
    ("kernel = true", "kernel = true\nto = ['192.0.2.1']", "service.wg.to", "name protocols in 'ports' (ipip, 6in4, gre, esp, l2tp, tcp/PORT)"),
    ('kernel = true\nsport = ["udp/51820"]', "kernel = true\nports = ['gre']", "service.wg", "'to' is missing: the kernel's gre packets have no mark"),
    ("kernel = true", "kernel = true\nports = ['gre']\nto = ['192.0.2.1']", "service.wg.sport", "excludes 'ports'"),
    ('kernel = true\nsport = ["udp/51820"]', "kernel = true\nports = ['gre']\nto = ['fe80::1']", "service.wg.to[0]", "no packet to fe80::1/128"),
    ('kernel = true\nsport = ["udp/51820"]', "kernel = true\nports = ['gre']\nto = ['0.0.0.0/0']", "service.wg.to[0]", "name the other end"),
    ("kernel = true", "kernel = true\nports = ['ah']", "service.wg.ports[0]", "IPsec authenticates by ESP too"),
    ("kernel = true", "kernel = true\nports = ['gra']", "service.wg.ports[0]", "or ping, ipip, 6in4, gre, esp, l2tp"),
    ('["udp/10000-10010"]', '["gre"]', "service.vpn.ports[0]", "name them in a service with 'kernel = true'"),
    (
        "user = 900",
        "user = 900\n[service.a]\nuplink = 'wan'\nkernel = true\nports = ['gre']\nto = ['192.0.2.0/24']\n"
        "[service.b]\nuplink = 'lte'\nkernel = true\nports = ['ipip', 'gre']\nto = ['192.0.3.1', '192.0.2.7']",
        "service.b.to[1]", "service 'a' sends gre to 192.0.2.7/32 by uplink 'wan'; name a destination once",
    ),
    ('["udp/51820"]', "['udp/1', 'tcp/9-10']", "service.wg.sport[1]", 'write ports = ["tcp/9-10"], and its servers'),
    ('uplink = "wan"', 'uplink = ["wan", "lte"]', "service.vpn.uplink", "a service has one uplink"),
    ("kernel = true", "kernel = true\nproto = ['41']", "service.wg.proto", "protocols are named in 'ports'"),
    ("kernel = true", "kernel = true\nports = ['icmp']", "service.wg.ports[0]", "write 'ping' for echo requests"),
    ("kernel = true", "kernel = true\nports = ['vrrp']", "service.wg.ports[0]", "'vrrp' has no ports; write a [lan.NAME]"),
    ('["udp/51820"]', "51820", "service.wg.sport", "expected a list in [ ], got a number"),
    ("group = 800", "group = 800\nsport = ['udp/1']", "service.vpn.sport", "with a group or user, 'ports' restricts"),
    *(
        ('["198.51.100.0/24"]', f'["198.51.100.0/24", "{net}"]', "service.vpn.to[1]", "never leave the machine; remove it")
        for net in ("127.0.0.0/8", "127.0.0.1", "::1", "0.0.0.0", "::")
    ),
    # how sockets are marked
    ("kernel = true", 'kernel = true\nmarks = "cgroup"', "service.wg.marks", "no program opens the kernel's own sockets"),
    ("user = 900", 'user = 900\ncgroup = "a"', "service.dns.cgroup", 'needs marks = "cgroup", but this service has "itself"'),
    ("user = 900", "user = 900\nconfine = true", "service.dns.confine", 'needs marks = "cgroup"'),
    ('marks = "itself"', 'marks = "cgruop"', "service.vpn.marks", "(did you mean 'cgroup'?)"),
    ('marks = "itself"', 'marks = "cgroup"\nconfine = "yes"', "service.vpn.confine", "expected true or false"),
    ('marks = "itself"', 'marks = "cgroup"\ncgroup = 3', "service.vpn.cgroup", "expected a string"),
    ('marks = "itself"', 'marks = "cgroup"\ncgroup = "nftpolicy"', "service.vpn.cgroup", "is the parent of the cgroups of all services"),
    *(
        ('marks = "itself"', f'marks = "cgroup"\ncgroup = {bad!r}', "service.vpn.cgroup", words)
        for bad, words in [
            ("/system.slice", "without a leading slash"),
            ("", "expected the path of a cgroup"),
            ("a//b", "expected"),
            ("a/", "expected"),
            ("a/../b", "expected"),
            ("./a", "expected"),
            ("a/cgroup.procs", "expected"),
            ("a b", "expected"),
            ("a" * 256, "expected"),
            ("/".join("a" * 40), "expected"),
        ]
    ),
    *(
        ("user = 900", f'user = 900\nmarks = "cgroup"\ncgroup = "{mine}"\n[service.x]\nuplink = "wan"\nuser = 901\n'
         f'marks = "cgroup"\ncgroup = "{other}"', "service.x.cgroup", "the same as, above or below the cgroup of service 'dns'")
        for mine, other in [("a", "a"), ("a", "a/b/c"), ("a/b/c", "a"), ("nftpolicy/x/y", "nftpolicy/x")]
    ),
    ('kernel = true\nsport = ["udp/51820"]', "user = 900", "service.wg.user", "service 'dns' already uses user '900'"),
    ("user = 900", "user = 77", "service.dns.user", "user '77' runs the resolver of uplink 'wan'"),
]  # fmt: skip


def fault(data):
    """Return the error of a bad policy: always a PolicyError, always one line."""
    with pytest.raises(PolicyError) as raised:
        load(data if isinstance(data, bytes) else data.encode(), "FILE")
    assert str(raised.value).startswith("FILE")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    return raised.value


def test_good_policy_is_accepted():
    assert load(GOOD.encode())[0].name == "p"


@pytest.mark.parametrize(("good", "bad", "key", "words"), BAD, ids=[f"{key}-{bad[:40]}" for _, bad, key, _ in BAD])
def test_bad_value_error_has_line_and_key(good, bad, key, words):
    assert GOOD.count(good) == 1
    text = GOOD.replace(good, bad)
    first = fault(text)
    error = next(error for error in (first, *first.more_errors) if words in error.message)
    assert f" {key}: " in str(error)
    # The line is that of the key, or of the table that should have held it.
    line = text.splitlines()[error.line - 1]
    last = [part for part in error.path if isinstance(part, str)][-1]
    written = line.partition(" =")[0].strip('"').encode().decode("unicode_escape")
    assert written == last or f"{{{last} =" in line or f" {last} =" in line or (line.startswith("[") and last in line)


@pytest.mark.parametrize(
    ("path", "line"),
    [(("uplink", "wan", "mark"), 6), (("uplink", "lte"), 17), (("service", "wg"), 37), ((), None)],
)
def test_missing_key_error_has_line_of_its_table(path, line):
    document = GOOD.splitlines()
    if path and path[-1] == "mark":
        del document[line - 1]
        message = fault("\n".join(document))
        assert (message.path, message.line) == (path[:-1], 4)
        assert message.message == "'mark' is missing"
    elif path:
        table = document[line - 1 :]
        end = next((index for index, text in enumerate(table) if not text), len(table))
        message = fault("\n".join([*document[:line], *table[end:]]))
        assert (message.path, message.line) == (path, line)
        assert " missing" in message.message
    else:
        assert str(fault("\n".join(document[1:]))).startswith("FILE: 'name' is missing; keys of the file itself")


ABOVE = "are missing; keys of the file itself stand above its first [table]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", f"FILE: 'name', 'inside', 'uplink' {ABOVE}"),
        (b"\n# nothing\n", f"FILE: 'name', 'inside', 'uplink' {ABOVE}"),
        (b'name = "p"\nx = "\xff"\n', "FILE:2: byte 16 is not UTF-8; save the file as UTF-8 text"),
        ('name = "p"\n'.encode("utf-16"), "FILE:1: byte 0 is not UTF-8; save the file as UTF-8 text"),
        (b"\x00" * 10, "FILE:1:1: not TOML: expected KEY = VALUE, [TABLE] or a comment after #"),
        (b"a = " + b"[" * 100_000, "FILE: nested too deeply"),
        (b"a = " + b"{a = " * 100_000, "FILE: nested too deeply"),
        (b"a = " + b"1" * 5000, "FILE:1:5: not TOML: a number has too many digits"),
    ],
)
def test_invalid_file_is_refused(data, message):
    assert str(fault(data)) == message


@pytest.mark.parametrize("garbage", [b"\x93", b"=", b"[", b"a", b'"', b"#\x01", b"\n\r"])
def test_megabyte_of_garbage_is_refused(garbage):
    fault(garbage * (1_000_000 // len(garbage)))


def test_too_large_file_is_refused():
    assert "policy too large: 67108865 bytes (limit 67108864)" in str(fault(b" " * ((64 << 20) + 1)))


@pytest.mark.parametrize("count", [33, 40])
def test_too_many_uplinks_are_refused(count):
    uplinks = "".join(
        f'[uplink.u{n}]\ndevices = ["e{n}"]\nmark = "{n + 1}/0xff"\ntable = {n + 1}\n' for n in range(count)
    )
    assert "more than the 32" in str(fault(f'name = "p"\ninside = []\n[service]\n{uplinks}'))


def test_policy_without_uplink_is_refused():
    assert "add [uplink.wan]" in str(fault('name = "p"\ninside = []\nuplink = {}\nservice = {}\n'))


def test_bad_policies_are_valid_toml():
    for good, bad, *_ in BAD:
        tomllib.loads(GOOD.replace(good, bad))


@pytest.mark.parametrize(
    "path",
    ["a", "system.slice/openvpn.service", "system.slice/system-openvpn.slice/openvpn@a\\x2db.service", "a:b/..c"],
)
def test_systemd_cgroup_names_are_accepted(path):
    text = GOOD.replace('marks = "itself"', f"marks = \"cgroup\"\nconfine = true\ncgroup = '{path}'")
    service = load(text.encode())[0].service["vpn"]
    assert (service.marks, service.cgroup, service.confine) == ("cgroup", path, True)
