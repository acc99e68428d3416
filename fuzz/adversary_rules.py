"""Random rules in nft's syntax: writes, verdicts, maps, objects and idioms, with random matches."""

from collections.abc import Callable

from .adversary_draw import CHAINS, Draw, draw_family, family_word, has_flow, is_link_layer
from .adversary_matches import draw_optional_match
from .storm_packets import MESH, NEAR, OWN, WAN


def draw_rule(draw: Draw, table: str, chain: str) -> str:
    """Return a rule for a chain."""
    if chain in ("natout", "natpre"):
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
    if chain not in ("further", "natpost", "natout", "natpre"):
        choices += ["goto further", "jump further"] if "further" in CHAINS[table] else []
        choices.append(f"{draw.choice(('jump', 'goto'))} {{ {draw_optional_match(draw, table, chain)} accept; }}")
    return draw.choice(choices)


def _write_mark(draw: Draw, table: str, chain: str) -> str:
    values = [
        "0", "1", "2", "0x10", "meta mark | 1", "meta mark | 2", "meta mark & 0xfffffffe",
        "meta mark & 0xfffffffe | 2",
        "meta mark ^ 1", "meta mark >> 1", "meta mark << 1", "meta mark & 2 | 0x10",
        "numgen random mod 2", "jhash meta mark mod 4", "meta l4proto map { 6 : 2, 17 : 1, 1 : 0 }",
        "meta skuid map { 0 : 1, 1000 : 2 }", "th dport map { 9 : 0x10, 53 : 1 }", "0xfffffffe", "meta mark",
        "numgen inc mod 2 offset 2", "numgen random mod 2 map { 0 : 2, 1 : 0x10 }", "symhash mod 2 offset 2",
        "jhash meta mark mod 4 offset 4", "meta mark & 0xfe | 0x100", "meta mark map { 0 : 2, 2 : 1, 0x10 : 0 }",
        "meta l4proto . th dport map { 17 . 9 : 2, 6 . 443 : 1 }", "meta length map { 1-100 : 2, 101-2000 : 0x10 }",
        "meta random", "meta oifname map { \"wan\" : 2, \"mesh\" : 1 }", "meta cpu",
    ]  # fmt: skip
    if has_flow(table, chain):
        values += ["ct mark", "ct mark", "ct mark & 0xfffffffe", "ct mark & 1", "ct mark | 2", "ct mark ^ 1"]
    if not is_link_layer(table):
        values.append("socket mark")
    if draw.random() < 0.1:
        return _write_mark_by_set(draw, table)
    return f"meta mark set {draw.choice(values)}"


def _write_mark_by_set(draw: Draw, table: str) -> str:
    """Return a write of a mark from a named map, which rules may change."""
    if draw.random() < 0.5:
        name = draw.add_set(table, "typeof meta l4proto : meta mark; elements = { 17 : 2, 6 : 0x10 }", "map")
        return f"meta mark set meta l4proto map @{name}"
    name = draw.add_set(table, "typeof meta l4proto : meta mark; size 64; flags dynamic, timeout", "map")
    value = draw.choice(("meta mark", "1", "2"))
    return draw.choice(
        (f"add @{name} {{ meta l4proto : {value} }}",
         f"add @{name} {{ meta l4proto : {value} }} meta mark set meta l4proto map @{name}")
    )  # fmt: skip


def _write_flow(draw: Draw, table: str, chain: str) -> str:
    if not has_flow(table, chain):
        return _write_mark(draw, table, chain)
    values = ["0", "1", "2", "meta mark", "meta mark", "meta mark & 0xfffffffe", "ct mark | 1",
              "ct mark & 0xfffffffe", "meta mark & 1", "socket mark", "0x10",
              "meta l4proto map { 6 : 1, 17 : 2 }"]  # fmt: skip
    return f"ct mark set {draw.choice(values)}"


def _write_header(draw: Draw, table: str, chain: str) -> str:
    family = draw_family(draw, table)
    choices = [
        f"{family_word(family)} dscp set ef", "@th,16,16 set 53", "tcp option maxseg size set 1000", "udp dport set 53",
        "meta priority set 1:1", "meta pkttype set broadcast", "meta pkttype set host", "th sport set 4000",
        "@nh,8,8 set 0", "tcp flags set syn", "icmp type set echo-reply", "tcp dport set 9", "tcp sport set 22",
        "@th,0,16 set 4000", "@th,64,32 set 0", "tcp option timestamp tsval set 0", "reset tcp option sack-perm",
        "udp checksum set 0", "udp length set 8", "sctp dport set 9", "dccp dport set 9", "icmp code set 3",
        "icmpv6 type set echo-reply", "icmpv6 code set 1", "tcp window set 1", "@nh,0,8 set 0x46",
        "meta priority set 0", "meta priority set meta mark" if draw.random() < 0.1 else "meta pkttype set other",
        "meta pkttype set multicast", "meta nftrace set 1", f"{family_word(family)} ecn set ce",
        f"{family_word(family)} ecn set not-ect", f"{family_word(family)} dscp set cs0",
        "@nh,96,32 set 0xc0000202" if family == 4 else "@nh,64,32 set 0x20010db8",
        "ip id set 0" if family == 4 else "ip6 flowlabel set 1",
        "ip frag-off set 0" if family == 4 else "ip6 length set 8",
        f"{family_word(family)} daddr set {NEAR[family]}", f"{family_word(family)} saddr set {OWN[family][MESH]}",
        "ip ttl set 1" if family == 4 else "ip6 hoplimit set 1",
        "ip protocol set 253" if family == 4 else "ip6 nexthdr set 253",
    ]  # fmt: skip
    if is_link_layer(table):
        choices += ["ether type set 0x88b5", "@ll,96,16 set 0x0806", "ether daddr set 02:00:5e:00:53:71",
                    "ether saddr set 02:00:5e:00:53:61", "ether type set arp", "ether type set ip", "vlan id set 6",
                    "arp operation set reply", "@ll,96,16 set 0x0800"]  # fmt: skip
    choice = draw.choice(choices)
    return f"{choice} {draw.choice(('', 'accept', 'drop'))}".strip()


def _special(draw: Draw, table: str, chain: str) -> str:
    choices = [
        "counter", "log", "limit rate 1/second accept", "limit rate over 1/hour drop", "quota 1 bytes accept",
        "meta nftrace set 0", "log group 1", 'log prefix "x" level debug', "limit rate 10 bytes/second drop",
        "limit rate over 1 kbytes/minute burst 10 bytes accept", "quota over 1 bytes drop",
    ]  # fmt: skip
    if is_link_layer(table):
        choices += [f'dup to "{WAN}"'] if table.startswith("netdev") else []
        if chain in ("ingress", "mesh"):
            choices += [f'fwd to "{WAN}"', f'fwd to "{MESH}"', f'fwd ip to {NEAR[4]} device "{WAN}"']
    elif not has_flow(table, chain):
        choices += ["notrack", "notrack", "ct zone set 1", "ct zone set 0"]
    else:
        choices += ["ct label set 1", "ct event set new", "ct mark set ct mark"]
    if has_flow(table, chain) and chain in ("input", "forward", "output"):
        choices += [
            "reject",
            "reject with icmpx type admin-prohibited",
            "reject with tcp reset",
            "ct count over 1 drop",
        ]
    if table == "inet foreign" and chain in ("input", "forward"):
        choices += ["meta l4proto tcp synproxy mss 1460 wscale 7 timestamp sack-perm"]
    if table == "inet foreign" and chain == "arrival":
        choices += ["meta l4proto udp tproxy ip to :9", "meta l4proto tcp tproxy to :42 meta mark set 2"]
    if table.startswith("ip foreign"):
        choices += ['dup to 192.0.2.1 device "wan"' if chain == "output" else "dup to 203.0.113.1"]
    return draw.choice(choices)


_OBJECTS = (  # kind, text, the statement with the object's name, what it needs
    ("counter", "packets 0 bytes 0", "counter name {}", ""),
    ("quota", "1 bytes", "quota name {} accept", ""),
    ("quota", "over 1 bytes", "quota name {} drop", ""),
    ("limit", "rate 1/second", "limit name {} accept", ""),
    ("limit", "rate over 1/second", "limit name {} drop", ""),
    ("counter", "packets 0 bytes 0", 'counter name meta mark map {{ 0 : "{}" }}', ""),
    ("limit", "rate 1/second", 'limit name meta l4proto map {{ 17 : "{}" }} accept', ""),
    ("quota", "1 bytes", 'quota name meta l4proto map {{ 17 : "{}" }} drop', ""),
    ("ct helper", 'type "ftp" protocol tcp', 'meta l4proto tcp ct helper set "{}"', "flow"),
    ("ct timeout", "protocol udp; policy = { unreplied : 5 }", 'meta l4proto udp ct timeout set "{}"', "flow"),
    ("ct expectation", "protocol udp; dport 9; timeout 2m; size 12", 'ct expectation set "{}"', "flow"),
    ("synproxy", "mss 1460; wscale 7; timestamp sack-perm", 'meta l4proto tcp synproxy name "{}"', "synproxy"),
)


def _named_object(draw: Draw, table: str, chain: str) -> str:
    """Return a statement of a named object, directly or by a map."""
    allowed = ["", *(["flow"] if has_flow(table, chain) else [])]
    allowed += ["synproxy"] if table == "inet foreign" and chain in ("input", "forward") else []
    kind, text, statement, _ = draw.choice([each for each in _OBJECTS if each[3] in allowed])
    return statement.format(draw.add_object(table, kind, text))


def _verdict_map(draw: Draw, table: str, chain: str) -> str:
    key, entries = draw.choice(
        (
            ("meta l4proto", "{ 17 : accept, 6 : drop }"),
            ("meta mark", "{ 0 : continue, 2 : accept, 16-31 : return }"),
            ("meta skuid", "{ 0 : accept, 1000 : drop }"),
            ("meta mark & 3", "{ 0 : drop, 1 : accept, 2 : accept }"),
            ("th dport", "{ 9 : drop, 53 : accept, 100-65535 : continue }"),
            ("oifname", '{ "wan" : continue, "mesh" : accept }'),
            ("meta l4proto . meta mark", "{ 17 . 0 : accept, 6 . 0-5 : continue }"),
            ("meta protocol", "{ ip : continue, ip6 : return, arp : accept }"),
            ("meta length", "{ 0-60 : accept, 61-100 : continue, 101-65535 : drop }"),
            (
                "meta mark & 1",
                "{ 1 : accept, 0 : jump further }"
                if "further" in CHAINS[table] and chain != "further"
                else "{ 1 : accept }",
            ),
        )
    )
    return f"{key} vmap {entries}"


def _idiom(draw: Draw, table: str, chain: str) -> str:
    """Return a rule of the kind that VPN programs and firewalls load."""
    if is_link_layer(table):
        return _write_mark(draw, table, chain)
    early = not has_flow(table, chain)
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
    _write_header, _special, _named_object,
    _verdict_map, _idiom, _idiom,
)  # fmt: skip
