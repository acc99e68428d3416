"""Random matches in nft's syntax."""

from collections.abc import Callable

from .adversary_draw import Draw, draw_family, family_word, has_flow, is_link_layer
from .storm_packets import FAR, MESH, NEAR, NOBODY, OWN, WAN


def draw_optional_match(draw: Draw, table: str, chain: str) -> str:
    """Return matches, or none."""
    return draw_match(draw, table, chain) if draw.random() < 0.7 else ""


def draw_match(draw: Draw, table: str, chain: str) -> str:
    """Return one match or two."""
    matches = [draw.choice(_MATCHES)(draw, table, chain) for _ in range(draw.choice((1, 1, 1, 2)))]
    return " ".join(matches)


def _by_address(draw: Draw, table: str, chain: str) -> str:
    family = draw_family(draw, table)
    nets = {
        4: ("198.51.100.0/24", "192.0.2.0/25", "239.0.0.0/8", "0.0.0.0/1", "128.0.0.0-255.255.255.255"),
        6: ("2001:db8:9::/48", "2001:db8:1::/64", "ff00::/8", "::/1", "8000::-ffff:ffff::"),
    }[family]
    value = draw.choice((FAR[family], NEAR[family], OWN[family][WAN], OWN[family][MESH], *nets))
    side = draw.choice(("daddr", "daddr", "saddr"))
    op = draw.choice(("", "", "!= "))
    if draw.random() < 0.25:
        name = draw.add_set(table, f"typeof {family_word(family)} {side}; flags interval; elements = {{ {value} }}")
        return f"{family_word(family)} {side} {op}@{name}"
    return f"{family_word(family)} {side} {op}{value}"


def _by_port(draw: Draw, table: str, chain: str) -> str:
    key = draw.choice(("udp dport", "tcp dport", "th dport", "udp sport", "th sport"))
    value = draw.choice(("9", "53", "67", "443", "{ 9, 53 }", "0-65535", "1-1023", "!= 9"))
    return f"{key} {value}"


_ONLY_IPV4 = ("ip ", "icmp ", "igmp ", "meta nfproto")
_ONLY_IPV6 = ("ip6 ", "icmpv6 ", "exthdr ", "rt ", "dst ", "hbh ", "frag ", "srh ")


def _by_protocol(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "meta l4proto udp", "meta l4proto != udp", "meta l4proto { tcp, udp }", "meta l4proto ipv6-icmp",
        "meta l4proto 253",
        "ip protocol udp", "ip protocol icmp", "ip6 nexthdr udp", "ip6 nexthdr 44", "icmp type echo-request",
        "icmp type timestamp-request", "icmpv6 type nd-neighbor-solicit", "icmpv6 type echo-reply", "icmp code 0",
        "igmp type membership-query", "tcp flags syn", "tcp flags & (syn|ack) == syn",
        "tcp option maxseg size 100-9000",
        "exthdr frag exists", "exthdr hbh exists", "exthdr dst missing", "udp length 8-100", "sctp dport 1-65535",
        "meta l4proto ipv6-icmp icmpv6 type echo-request", "meta nfproto ipv4 meta l4proto ipv6-icmp icmpv6 type 128",
        "meta l4proto icmp icmp type echo-request", "th sport 40000-50000",
        "exthdr rt exists", "exthdr mh missing", "rt type 0", "dst nexthdr 17", "hbh hdrlength 0", "hbh nexthdr 17",
        "frag more-fragments 0", "frag frag-off 0", "frag id 7", "frag nexthdr 17", "srh flags 0",
        "tcp option sack-perm exists", "tcp option timestamp tsval > 1", "tcp option window missing",
        "ip option lsrr exists", "ip option ra missing", "tcp doff 5", "tcp window > 0", "tcp ackseq 0",
        "sctp chunk data exists", "sctp vtag 0", "sctp sport 0-65535", "dccp type request", "dccp dport != 9",
        "esp spi 0-100", "esp sequence != 0", "ah spi > 1", "ah hdrlength 0", "comp cpi 1", "comp flags 0",
        "udplite dport 0-65535", "udplite csumcov 8", "udp checksum != 0", "icmp id 0-65535", "icmp sequence 1",
        "icmpv6 code 0", "icmpv6 id > 0", "icmpv6 mtu 0", "igmp group 239.1.2.3", "meta l4proto { 0, 43, 44, 60 }",
        "ip protocol != { tcp, udp, icmp }", "ip6 nexthdr != { 0, 17, 44, 60 }", "meta l4proto > 16",
    ]  # fmt: skip
    if table.startswith("ip6"):
        choices = [choice for choice in choices if not choice.startswith(_ONLY_IPV4) and "icmp icmp" not in choice]
    if table == "ip foreign":
        choices = [choice for choice in choices if not choice.startswith(_ONLY_IPV6) and "icmpv6" not in choice]
    return draw.choice(choices)


def _by_header(draw: Draw, table: str, chain: str) -> str:
    choices = {
        4: (
            "ip dscp ef", "ip dscp != cs0", "ip ttl 1", "ip ttl > 1", "ip ttl < 64", "ip length 0-40",
            "ip length 41-2000",
            "ip frag-off & 0x1fff != 0", "ip frag-off & 0x2000 != 0", "ip id 7", "ip hdrlength 6", "ip version 4",
            "@nh,8,8 0xb8", "@nh,72,8 17", "@th,0,16 1-65535", "@nh,0,4 4", "ip ecn ce", "ip ecn != ect0",
            "ip checksum != 0", "ip frag-off 0", "@ih,0,32 0", "@th,0,32 & 0xffff != 9", "@nh,96,64 != 0",
        ),
        6: ("ip6 dscp ef", "ip6 hoplimit 1", "ip6 hoplimit > 1", "ip6 flowlabel 0", "ip6 length 0-40",
        "ip6 version 6",
            "@nh,48,8 17", "@nh,0,4 6", "ip6 ecn ce", "ip6 ecn not-ect", "ip6 flowlabel & 1 == 0", "ip6 nexthdr 0-255",
            "@th,16,16 9", "@nh,64,128 != 0", "@ih,0,8 > 0"),
    }  # fmt: skip
    return draw.choice(choices[draw_family(draw, table)])


def _by_owner(draw: Draw, table: str, chain: str) -> str:
    return draw.choice(
        (
            f"meta skuid {NOBODY}", f"meta skuid != {NOBODY}", "meta skuid 0", "meta skgid 1000", "meta skuid 1-2000",
            "meta skgid { 0, 1000 }", "socket wildcard 0", "meta skuid > 0",
            "meta skuid . meta skgid { 0 . 0, 1000 . 1000 }",
            "meta skuid { 0-999, 2000-70000 }", "meta cgroup 0", "meta skgid < 70000",
        )
    )  # fmt: skip


def _by_mark(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "meta mark 0", "meta mark 2", "meta mark & 2 == 2", "meta mark & 0x10 != 0", "meta mark 0-5",
        "meta mark != 0",
        "meta mark > 1", "meta mark { 0, 2, 16 }", "meta mark ^ 1 == 3", "meta mark | 1 == 1", "meta mark & 3 == 2",
        "meta mark & 3 { 0, 2 }", "meta mark & 1 != 1", "meta mark . meta l4proto { 0 . 17, 2 . 17, 0 . 6 }",
        "meta mark >= 2", "meta mark != { 1, 3 }", "meta mark & 0xff < 0x20", "meta mark & 6 == 2",
    ]  # fmt: skip
    if not is_link_layer(table):
        choices += ["ct mark 0", "ct mark & 1 == 1", "ct mark != 0", "socket mark 2", "socket mark & 1 == 0"]
        choices += ["ct mark != 1", "ct mark . meta mark { 0 . 0, 1 . 0 }", "ct mark & 3 { 0, 2 }", "ct mark 0-5"]
    return draw.choice(choices)


def _by_flow(draw: Draw, table: str, chain: str) -> str:
    if not has_flow(table, chain):
        return _by_meta(draw, table, chain)
    return draw.choice(
        (
            "ct state new", "ct state established", "ct state related", "ct state invalid", "ct state untracked",
            "ct direction reply", "ct direction original", "ct status confirmed", "ct status dnat",
            "ct status & seen-reply != 0",
            "ct expiration > 1s", "ct original packets > 1", "ct l3proto ipv4", "ct protocol udp", "ct zone 0",
            "ct count over 1",
            "ct helper \"ftp\"", "ct label 1", "ct id 1", "ct bytes > 1", "ct avgpkt < 2000", "ct reply packets 0",
            "ct original ip daddr 198.51.100.0/24", "ct original proto-dst 1-65535", "ct reply bytes < 100",
            "ct original zone 0", "ct status { expected, snat }", "ct status ! confirmed", "ct state & new == new",
            "ct state != { invalid, untracked }", "ct state . ct direction { new . original, established . reply }",
            "ct count 100", "ct secmark set meta secmark" if chain == "output" else "ct state new",
        )
    )  # fmt: skip


def _by_meta(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "meta pkttype host", "meta pkttype multicast", "meta pkttype != host", "meta protocol ip",
        "meta protocol arp",
        "meta protocol ip6", "meta length < 100", "meta length > 40", "meta cpu 0-1000", "meta iiftype 1",
        "meta oiftype 1",
        "meta iifgroup 0", f'meta oifname "{WAN}"', 'meta oifname "w*"', f'iifname "{MESH}"', f'oifname != "{WAN}"',
        "numgen random mod 2 0", "numgen inc mod 2 1", "meta priority 0", "meta hour \"00:00\"-\"23:59\"",
        "jhash meta mark mod 2 0", "symhash mod 2 1", "meta rtclassid 0", "meta iifkind \"veth\"", "meta time > 1",
        "meta day 0-6", "meta random > 100000", "meta sdif 0", "meta oifgroup 0", "meta oifkind \"veth\"",
        "meta oif . meta mark { 0 . 0, 2 . 0 }", "meta protocol . meta l4proto { ip . udp, ip6 . udp, ip . tcp }",
        "jhash ip saddr mod 4 seed 7 != 1" if not table.startswith("ip6") else "jhash ip6 saddr mod 4 seed 7 != 1",
        "numgen random mod 100 < 50", "osf name \"Linux\"", "meta pkttype != { broadcast, multicast }",
        f'meta oifname {{ "{WAN}", "lo" }}', 'oifname "wa*"', f'oifname . meta mark {{ "{WAN}" . 0, "{MESH}" . 0 }}',
    ]  # fmt: skip
    if is_link_layer(table):
        choices += ["ether type ip", "ether type arp", "ether type ip6", "ether daddr 02:00:5e:00:53:70", "vlan id 5",
                    "ether saddr 02:00:5e:00:53:61", "ether type != { ip, ip6, arp }", "vlan type ip", "vlan pcp 0",
                    "ether type vlan vlan id 1-4094", "arp operation request", "arp htype 1", "@ll,0,48 != 0",
                    "@ll,96,16 0x0800", "@ll,96,16 != 0x86dd", "meta protocol vlan", "meta protocol 0x88b5",
                    "arp saddr ip 192.0.2.0/24", "ether type . meta protocol { ip . ip, ip6 . ip6 }"]  # fmt: skip
    else:
        choices += ["fib daddr type unicast", "fib daddr type { local, broadcast, multicast }",
        "fib saddr type local",
                    "rt nexthop 192.0.2.1" if table != "ip6 foreign" else "rt nexthop 2001:db8:1::1",
                    "meta secpath missing", "meta ipsec missing", "rt ipsec missing", "rt mtu 1500", "rt classid 0",
                    "fib daddr . mark type unicast", "fib daddr oifname \"wan\"", "fib daddr . oif type != local",
                    "ipsec out spi 1", "socket transparent 1"]  # fmt: skip
        if chain in ("raw", "arrival"):
            choices += ["fib saddr . iif oif missing", "fib saddr . mark . iif oif missing"]
    return draw.choice(choices)


def by_several_fields(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up of several fields, often negated, in elements that have values in common."""
    family = draw_family(draw, table)
    values = {
        "meta l4proto": ("udp", "tcp", "253"),
        "meta mark": ("0", "0", "1", "2"),
        "meta protocol": ("ip", "ip6"),
    }
    if draw.random() < 0.5:  # fields that not all packets have
        values |= {
            f"{family_word(family)} daddr": (FAR[family], NEAR[family]),
            "th dport": ("9", "53", "443", "67"),
            "meta skuid": ("0", f"{NOBODY}"),
        }
    keys = draw.sample(list(values), draw.choice((2, 2, 3)))
    elements = {" . ".join(draw.choice(values[key]) for key in keys) for _ in range(draw.choice((1, 2, 3, 4)))}
    return f"{' . '.join(keys)} {draw.choice(('', '!= ', '!= '))}{{ {', '.join(sorted(elements))} }}"


def _by_set(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set, or a statement that changes one."""
    return draw.choice((_by_element_statement, _by_fixed_set, _by_changed_set, _update_set))(draw, table, chain)


def _by_element_statement(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set whose elements have statements."""
    statement = draw.choice(
        ("limit rate 1/second", "counter", "quota 1 bytes", "limit rate over 1000/second", "quota over 1 bytes",
         "ct count over 1" if has_flow(table, chain) else "counter")
    )  # fmt: skip
    own = draw.choice(("", statement))
    name = draw.add_set(table, f"typeof meta l4proto; {statement}; elements = {{ 6, 17 {own}, 1, 253 }}")
    return f"meta l4proto {draw.choice(('', '', '!= '))}@{name}"


def _by_fixed_set(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set of intervals, of concatenations or with timeouts, or in a verdict map."""
    key, text, kind = draw.choice(_FIXED_SETS)
    name = draw.add_set(table, text, kind)
    return f"{key} vmap @{name}" if kind == "map" else f"{key} {draw.choice(('', '', '!= '))}@{name}"


# Key, the set's text, "set" or "map".
_FIXED_SETS = (
    ("meta mark", "type mark; flags interval; elements = { 0-1, 16-31 }", "set"),
    ("meta mark", "type mark; flags interval; elements = { 0, 2-0xfffffffe }", "set"),
    ("meta l4proto . th dport", "typeof meta l4proto . th dport; flags interval; "
     "elements = { udp . 1-100, tcp . 443 }", "set"),
    ("meta l4proto", "typeof meta l4proto; elements = { 6 timeout 1h, 17, 1 }; flags timeout", "set"),
    ("meta l4proto", "typeof meta l4proto; flags interval, constant; elements = { 0-16, 18-255 }", "set"),
    ("meta l4proto", "typeof meta l4proto; flags interval; auto-merge; elements = { 0-100, 50-255 }", "set"),
    ("meta l4proto", "typeof meta l4proto : verdict; elements = { 17 : continue, 6 : return, 253 : accept }", "map"),
    ("meta l4proto", "typeof meta l4proto : verdict; flags interval; elements = { 0-16 : drop, 18-255 : drop }",
     "map"),
    ("meta mark", "type mark : verdict; counter; elements = { 0 : drop, 1 : accept, 2 : continue }", "map"),
)  # fmt: skip
_CHANGED_SETS = ("meta l4proto", "meta mark", "th dport", "meta skuid")


def _by_changed_set(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set that an earlier rule of the chain changes."""
    key = draw.choice(_CHANGED_SETS)
    elements = {"meta l4proto": "17, 6", "meta mark": "0, 2", "th dport": "9, 53", "meta skuid": "0, 1000"}[key]
    begin = draw.choice(("", f"; elements = {{ {elements} }}"))
    name = draw.add_set(table, f"typeof {key}; size 64; flags dynamic, timeout{begin}")
    verb = draw.choice(("add", "update", "delete"))
    draw.add_rule(table, chain, f"{_sometimes(draw, table, chain)}{verb} @{name} {{ {key} }}".strip())
    return f"{key} {draw.choice(('', '!= '))}@{name}"


def _update_set(draw: Draw, table: str, chain: str) -> str:
    """Return a statement that adds to a set, and ends the rule if it cannot or if its own statement does."""
    name = draw.add_set(table, "typeof meta l4proto; size 64; flags dynamic, timeout; timeout 1m")
    statement = draw.choice(("", "limit rate 1/second", "counter", "timeout 10s", "quota over 1 bytes"))
    return f"{draw.choice(('add', 'update'))} @{name} {{ meta l4proto {statement} }}"


def _sometimes(draw: Draw, table: str, chain: str) -> str:
    return draw.choice(("", "", "meta l4proto udp ", "meta mark & 1 == 0 ", "limit rate 1/second "))


_MATCHES: tuple[Callable[[Draw, str, str], str], ...] = (
    _by_address, _by_port, _by_protocol, _by_protocol, _by_header, _by_owner, _by_mark, _by_mark, _by_flow,
    _by_meta, _by_meta,
    _by_set, by_several_fields,
)  # fmt: skip
