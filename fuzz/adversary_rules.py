"""Random rules in nft's syntax, over the whole grammar: matches, writes, verdicts, sets and maps."""

import random
from collections.abc import Callable

from attrs import frozen

from .storm_packets import FAR, MESH, NEAR, NOBODY, OWN, WAN

# Slot of a rule: (table, chain). Table -> chain -> its hook; None: a regular chain.
CHAINS: dict[str, dict[str, str | None]] = {
    "inet guard": {
        "last": "type filter hook postrouting priority 300",
        "further": None,
    },
    "netdev guard": {
        "wire": f'type filter hook egress device "{WAN}" priority 300',
        "further": None,
    },
    "inet foreign": {
        "raw": "type filter hook prerouting priority -300",
        "arrival": "type filter hook prerouting priority -150",
        "input": "type filter hook input priority 0",
        "forward": "type filter hook forward priority 0",
        "early": "type filter hook output priority -300",
        "route": "type route hook output priority -150",
        "output": "type filter hook output priority 0",
        "post": "type filter hook postrouting priority 150",
        "after": "type filter hook postrouting priority 400",
        "natout": "type nat hook output priority -100",
        "natpost": "type nat hook postrouting priority 100",
        "further": None,
    },
    "ip foreign": {
        "output": "type filter hook output priority -10",
        "post": "type filter hook postrouting priority -10",
    },
    "ip6 foreign": {
        "output": "type filter hook output priority -10",
        "post": "type filter hook postrouting priority -10",
    },
    "netdev foreign": {
        "wire": f'type filter hook egress device "{WAN}" priority 0',
        "after": f'type filter hook egress device "{WAN}" priority 400',
        "ingress": f'type filter hook ingress device "{WAN}" priority 0',
        "mesh": f'type filter hook ingress device "{MESH}" priority 0',
        "further": None,
    },
}


@frozen
class Part:
    """Part of a state: a rule of a chain, or a set or map of a table. `place` is "TABLE CHAIN" or "TABLE"."""

    place: str
    text: str

    @property
    def table(self) -> str:
        """Return "FAMILY NAME"."""
        return " ".join(self.place.split()[:2])

    @property
    def is_rule(self) -> bool:
        """Return True for a rule."""
        return len(self.place.split()) > len(self.table.split())


class Draw(random.Random):
    """Random choices of one state."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sets: list[Part] = []

    def add_set(self, table: str, text: str, kind: str = "set") -> str:
        """Add a set or map to the state; return its name."""
        name = f"{kind}{len(self.sets)}"
        self.sets.append(Part(table, f"{kind} {name} {{ {text}; }}"))
        return name


# --- matches ---------------------------------------------------------------------------------


def draw_optional_match(draw: Draw, table: str, chain: str) -> str:
    """Return matches, or none."""
    return draw_match(draw, table, chain) if draw.random() < 0.7 else ""


def draw_match(draw: Draw, table: str, chain: str) -> str:
    """Return one match or two."""
    matches = [draw.choice(_MATCHES)(draw, table, chain) for _ in range(draw.choice((1, 1, 1, 2)))]
    return " ".join(matches)


def _family(draw: Draw, table: str) -> int:
    return {"ip": 4, "ip6": 6}.get(table.split()[0]) or draw.choice((4, 6))


def _word(family: int) -> str:
    return "ip" if family == 4 else "ip6"


def _by_address(draw: Draw, table: str, chain: str) -> str:
    family = _family(draw, table)
    nets = {
        4: ("198.51.100.0/24", "192.0.2.0/25", "239.0.0.0/8", "0.0.0.0/1", "128.0.0.0-255.255.255.255"),
        6: ("2001:db8:9::/48", "2001:db8:1::/64", "ff00::/8", "::/1", "8000::-ffff:ffff::"),
    }[family]
    value = draw.choice((FAR[family], NEAR[family], OWN[family][WAN], OWN[family][MESH], *nets))
    side = draw.choice(("daddr", "daddr", "saddr"))
    op = draw.choice(("", "", "!= "))
    if draw.random() < 0.25:
        name = draw.add_set(table, f"typeof {_word(family)} {side}; flags interval; elements = {{ {value} }}")
        return f"{_word(family)} {side} {op}@{name}"
    return f"{_word(family)} {side} {op}{value}"


def _by_port(draw: Draw, table: str, chain: str) -> str:
    key = draw.choice(("udp dport", "tcp dport", "th dport", "udp sport", "th sport"))
    value = draw.choice(("9", "53", "67", "443", "{ 9, 53 }", "0-65535", "1-1023", "!= 9"))
    return f"{key} {value}"


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
    ]  # fmt: skip
    if table.startswith("ip6"):
        choices = [choice for choice in choices if "ip " not in choice and not choice.startswith(("icmp ", "igmp"))]
    if table == "ip foreign":
        choices = [
            choice for choice in choices if "ip6" not in choice and "icmpv6" not in choice and "exthdr" not in choice
        ]
    return draw.choice(choices)


def _by_header(draw: Draw, table: str, chain: str) -> str:
    choices = {
        4: (
            "ip dscp ef", "ip dscp != cs0", "ip ttl 1", "ip ttl > 1", "ip ttl < 64", "ip length 0-40",
            "ip length 41-2000",
            "ip frag-off & 0x1fff != 0", "ip frag-off & 0x2000 != 0", "ip id 7", "ip hdrlength 6", "ip version 4",
            "@nh,8,8 0xb8", "@nh,72,8 17", "@th,0,16 1-65535", "@nh,0,4 4",
        ),
        6: ("ip6 dscp ef", "ip6 hoplimit 1", "ip6 hoplimit > 1", "ip6 flowlabel 0", "ip6 length 0-40",
        "ip6 version 6",
            "@nh,48,8 17", "@nh,0,4 6"),
    }  # fmt: skip
    return draw.choice(choices[_family(draw, table)])


def _by_owner(draw: Draw, table: str, chain: str) -> str:
    return draw.choice(
        (
            f"meta skuid {NOBODY}", f"meta skuid != {NOBODY}", "meta skuid 0", "meta skgid 1000", "meta skuid 1-2000",
            "meta skgid { 0, 1000 }", "socket wildcard 0",
        )
    )  # fmt: skip


def _by_mark(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "meta mark 0", "meta mark 2", "meta mark & 2 == 2", "meta mark & 0x10 != 0", "meta mark 0-5",
        "meta mark != 0",
        "meta mark > 1", "meta mark { 0, 2, 16 }", "meta mark ^ 1 == 3", "meta mark | 1 == 1", "meta mark & 3 == 2",
    ]  # fmt: skip
    if not table.startswith("netdev"):
        choices += ["ct mark 0", "ct mark & 1 == 1", "ct mark != 0", "socket mark 2", "socket mark & 1 == 0"]
    return draw.choice(choices)


def _by_flow(draw: Draw, table: str, chain: str) -> str:
    if table.startswith("netdev") or chain in ("raw", "early"):
        return _by_meta(draw, table, chain)
    return draw.choice(
        (
            "ct state new", "ct state established", "ct state related", "ct state invalid", "ct state untracked",
            "ct direction reply", "ct direction original", "ct status confirmed", "ct status dnat",
            "ct status & seen-reply != 0",
            "ct expiration > 1s", "ct original packets > 1", "ct l3proto ipv4", "ct protocol udp", "ct zone 0",
            "ct count over 1",
            "ct helper \"ftp\"",
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
    ]  # fmt: skip
    if table.startswith("netdev"):
        choices += ["ether type ip", "ether type arp", "ether type ip6", "ether daddr 02:00:5e:00:53:70", "vlan id 5",
                    "ether saddr 02:00:5e:00:53:61"]  # fmt: skip
    else:
        choices += ["fib daddr type unicast", "fib daddr type { local, broadcast, multicast }",
        "fib saddr type local",
                    "rt nexthop 192.0.2.1" if table != "ip6 foreign" else "rt nexthop 2001:db8:1::1",
                    "meta secpath missing"]  # fmt: skip
        if chain in ("raw", "arrival"):
            choices.append("fib saddr . iif oif missing")
    return draw.choice(choices)


def _by_set(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set with elements that have statements, timeouts or intervals, or that rules change."""
    kind = draw.randrange(7)
    if kind == 0:
        statement = draw.choice(("limit rate 1/second", "counter", "quota 1 bytes", "limit rate over 1000/second"))
        name = draw.add_set(table, f"typeof meta l4proto; {statement}; elements = {{ 6, 17, 253 }}")
        return f"meta l4proto {draw.choice(('', '!= '))}@{name}"
    if kind == 1:
        statement = draw.choice(("limit rate 1/second", "counter", "quota over 1 bytes"))
        name = draw.add_set(table, f"typeof meta l4proto; {statement}; elements = {{ 6, 17 {statement}, 1 }}")
        return f"meta l4proto @{name}"
    if kind == 2:
        name = draw.add_set(table, "type mark; flags interval; elements = { 0-1, 16-31 }")
        return f"meta mark {draw.choice(('', '!= '))}@{name}"
    if kind == 3:
        name = draw.add_set(
            table, "typeof meta l4proto . th dport; flags interval; elements = { udp . 1-100, tcp . 443 }"
        )
        return f"meta l4proto . th dport @{name}"
    if kind == 4:
        name = draw.add_set(table, "typeof meta l4proto; size 64; flags dynamic, timeout; timeout 1m")
        statement = draw.choice(("", "limit rate 1/second", "counter"))
        return f"{draw.choice(('add', 'update'))} @{name} {{ meta l4proto {statement} }}"
    if kind == 5:
        name = draw.add_set(table, "typeof meta l4proto; elements = { 6 timeout 1h, 17, 1 }; flags timeout")
        return f"meta l4proto @{name}"
    name = draw.add_set(
        table, "typeof meta l4proto : verdict; elements = { 17 : continue, 6 : return, 253 : accept }", "map"
    )
    return f"meta l4proto vmap @{name}"


_MATCHES: tuple[Callable[[Draw, str, str], str], ...] = (
    _by_address, _by_port, _by_protocol, _by_protocol, _by_header, _by_owner, _by_mark, _by_mark, _by_flow,
    _by_meta, _by_meta,
    _by_set,
)  # fmt: skip


# --- rules -----------------------------------------------------------------------------------


def draw_rule(draw: Draw, table: str, chain: str) -> str:
    """Return a rule for a chain."""
    if chain == "natout":
        target = draw.choice((f"dnat ip to {NEAR[4]}", f"dnat ip6 to {NEAR[6]}", "redirect to :9", "accept"))
        return f"{draw_optional_match(draw, table, chain)} {_transport(target)}{target}"
    if chain == "natpost":
        target = draw.choice((f"snat ip to {OWN[4][MESH]}", f"snat ip6 to {OWN[6][MESH]}", "masquerade", "accept"))
        return f"{draw_optional_match(draw, table, chain)} {target}"
    action = draw.choice(_ACTIONS)(draw, table, chain)
    matches = draw_optional_match(draw, table, chain)
    return f"{matches} {action}".strip()


def _transport(target: str) -> str:
    return "meta l4proto { tcp, udp } " if target.startswith("redirect to") else ""


def _verdict(draw: Draw, table: str, chain: str) -> str:
    choices = ["accept", "accept", "drop", "return", "continue", "counter", 'log prefix "x" accept']
    if chain not in ("further", "natpost", "natout"):
        choices += ["goto further", "jump further"] if "further" in CHAINS[table] else []
    return draw.choice(choices)


def _write_mark(draw: Draw, table: str, chain: str) -> str:
    values = [
        "0", "1", "2", "0x10", "meta mark | 1", "meta mark | 2", "meta mark & 0xfffffffe",
        "meta mark & 0xfffffffe | 2",
        "meta mark ^ 1", "meta mark >> 1", "meta mark << 1", "meta mark & 2 | 0x10",
        "numgen random mod 2", "jhash meta mark mod 4", "meta l4proto map { 6 : 2, 17 : 1, 1 : 0 }",
        "meta skuid map { 0 : 1, 1000 : 2 }", "th dport map { 9 : 0x10, 53 : 1 }",
    ]  # fmt: skip
    if not table.startswith("netdev") and chain not in ("raw", "early"):
        values += ["ct mark", "ct mark", "ct mark & 0xfffffffe", "ct mark & 1", "ct mark | 2"]
    if not table.startswith("netdev"):
        values.append("socket mark")
    return f"meta mark set {draw.choice(values)}"


def _write_flow(draw: Draw, table: str, chain: str) -> str:
    if table.startswith("netdev") or chain in ("raw", "early"):
        return _write_mark(draw, table, chain)
    values = ["0", "1", "2", "meta mark", "meta mark", "meta mark & 0xfffffffe", "ct mark | 1", "ct mark & 0xfffffffe"]
    return f"ct mark set {draw.choice(values)}"


def _write_header(draw: Draw, table: str, chain: str) -> str:
    family = _family(draw, table)
    choices = [
        f"{_word(family)} dscp set ef", "@th,16,16 set 53", "tcp option maxseg size set 1000", "udp dport set 53",
        "meta priority set 1:1", "meta pkttype set broadcast", "meta pkttype set host", "th sport set 4000",
        "@nh,8,8 set 0", "tcp flags set syn", "icmp type set echo-reply",
        f"{_word(family)} daddr set {NEAR[family]}", f"{_word(family)} saddr set {OWN[family][MESH]}",
        "ip ttl set 1" if family == 4 else "ip6 hoplimit set 1",
        "ip protocol set 253" if family == 4 else "ip6 nexthdr set 253",
    ]  # fmt: skip
    if table.startswith("netdev"):
        choices += ["ether type set 0x88b5", "@ll,96,16 set 0x0806", "ether daddr set 02:00:5e:00:53:71"]
    choice = draw.choice(choices)
    return f"{choice} {draw.choice(('', 'accept', 'drop'))}".strip()


def _special(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "counter",
        "log",
        "limit rate 1/second accept",
        "limit rate over 1/hour drop",
        "quota 1 bytes accept",
        "meta nftrace set 0",
    ]
    if table.startswith("netdev"):
        choices += [f'fwd to "{WAN}"' if chain in ("ingress", "mesh") else "counter", f'dup to "{WAN}"']
    elif chain in ("raw", "early"):
        choices += ["notrack"]
    elif chain in ("input", "forward", "output"):
        choices += ["reject", "reject with icmpx type admin-prohibited", "reject"]
    if table.startswith("ip foreign"):
        choices += ['dup to 192.0.2.1 device "wan"' if chain == "output" else "counter"]
    return draw.choice(choices)


def _verdict_map(draw: Draw, table: str, chain: str) -> str:
    key, entries = draw.choice(
        (
            ("meta l4proto", "{ 17 : accept, 6 : drop }"),
            ("meta mark", "{ 0 : continue, 2 : accept, 16-31 : return }"),
            ("meta skuid", "{ 0 : accept, 1000 : drop }"),
            ("meta mark & 3", "{ 0 : drop, 1 : accept, 2 : accept }"),
            ("th dport", "{ 9 : drop, 53 : accept, 100-65535 : continue }"),
            ("oifname", '{ "wan" : continue, "mesh" : accept }'),
        )
    )
    return f"{key} vmap {entries}"


def _idiom(draw: Draw, table: str, chain: str) -> str:
    """Return a rule of the kind that VPN programs and firewalls load."""
    if table.startswith("netdev"):
        return _write_mark(draw, table, chain)
    early = chain in ("raw", "early")
    choices = [
        f'iifname "{WAN}" meta mark set 1',
        f'iifname "{WAN}" meta mark set meta mark | 1',
        "meta mark & 1 == 1 accept",
    ]
    if not early:
        choices += [
            "meta mark & 1 == 1 ct mark set 1", "meta mark & 1 == 1 ct mark set ct mark | 1",
            "ct mark 1 meta mark set 1",
            "ct mark & 1 == 1 meta mark set meta mark | 1", "ct direction reply ct mark 1 meta mark set 1",
            f'iifname "{WAN}" ct state new ct mark set 1', f'iifname "{WAN}" ct mark set 1',
            "ct mark != 0 meta mark set ct mark",
            "meta mark != 0 ct mark set meta mark", "ct state established,related accept",
        ]  # fmt: skip
    return draw.choice(choices)


_ACTIONS: tuple[Callable[[Draw, str, str], str], ...] = (
    _verdict, _verdict, _write_mark, _write_mark, _write_mark, _write_flow, _write_flow, _write_header,
    _write_header, _special,
    _verdict_map, _idiom, _idiom,
)  # fmt: skip
