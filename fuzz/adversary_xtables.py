"""Random rules of iptables and ip6tables, legacy and by nf_tables."""

from .adversary_draw import Draw, Part
from .storm_packets import MESH, NOBODY, WAN

IPTABLES = {
    ("nft", 4): "iptables",
    ("nft", 6): "ip6tables",
    ("legacy", 4): "iptables-legacy",
    ("legacy", 6): "ip6tables-legacy",
}
CHAINS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_BEHIND = ("OUTPUT", "POSTROUTING", "FORWARD")  # with an output device

_MATCHES = (
    "-p udp", "-p tcp", "! -p udp", "-p udp --dport 9", "-p tcp --dport 443", "-p udp -m multiport --dports 9,53",
    "-m mark --mark 0", "-m mark ! --mark 1/1", "-m mark --mark 2/2", "-m mark --mark 0x10/0xf0",
    "-m limit --limit 1/s", "-m statistic --mode random --probability 0.5",
    "-m statistic --mode nth --every 2 --packet 0",
    "-m pkttype --pkt-type unicast", "-m pkttype ! --pkt-type multicast", "-m length --length 0:100",
    "-m length ! --length 0:60", "-m tos --tos 0xb8", "-m dscp ! --dscp 0", "-m comment --comment x",
    "-m devgroup --src-group 0", "-m cpu --cpu 0", "-m time --timestart 00:00", "-m quota --quota 10",
    "-m string --algo bm --string storm", "-m u32 --u32 0&0xFF=0x0", "-m realm --realm 0",
    "-m recent --name advr --set",
    "-m recent --name advr --rcheck", "-m hashlimit --hashlimit-upto 1/s --hashlimit-name advh",
    '-m bpf --bytecode "1,6 0 0 65535"', "-m addrtype --dst-type UNICAST", "-m addrtype ! --dst-type LOCAL",
    "-p sctp --dport 9", "-p esp -m esp --espspi 0:100", "-p tcp -m tcpmss --mss 1:1000", "-p 253",
)  # fmt: skip
_MATCHES_BY_FAMILY = {
    4: ("-m ttl --ttl-gt 1", "-m ttl --ttl-eq 1", "-p icmp --icmp-type 8", "-f", "! -f", "-p ah",
        "-m ecn --ecn-ip-ect 0", "-d 198.51.100.0/24", "! -d 192.0.2.0/25",
        "-m iprange --dst-range 192.0.2.0-198.51.100.255"),
    6: ("-m hl --hl-gt 1", "-m hl --hl-eq 1", "-p ipv6-icmp --icmpv6-type 128", "-m frag --fragid 0:9",
        "-m hbh --hbh-len 8", "-m dst --dst-len 8", "-m rt --rt-type 0", "-m ipv6header --header hop --soft",
        "-d 2001:db8:9::/48", "! -d ff00::/8"),
}  # fmt: skip
_FLOW_MATCHES = (
    "-m connmark --mark 0", "-m connmark --mark 1/1", "-m connmark ! --mark 1", "-m conntrack --ctstate NEW",
    "-m conntrack --ctdir ORIGINAL", "-m state --state ESTABLISHED", "-m conntrack ! --ctstate INVALID",
    "-m connbytes --connbytes 1: --connbytes-dir both --connbytes-mode packets", "-m connlimit --connlimit-above 1",
    "-m helper --helper ftp", "-m connlabel --label 1", "-m policy --dir out --pol none",
    "-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1",
)  # fmt: skip
_OWNER_MATCHES = (
    f"-m owner --uid-owner {NOBODY}", f"-m owner ! --uid-owner {NOBODY}", "-m owner --gid-owner 0-2000",
    "-m owner --socket-exists", "-m owner ! --socket-exists", "-m cgroup ! --cgroup 1",
)  # fmt: skip

_NEUTRAL_TARGETS = ("LOG", "NFLOG", "CLASSIFY --set-class 1:1", "NFQUEUE --queue-bypass", "RETURN", "ACCEPT", "DROP")
_TARGETS = {
    "raw": ("CT --notrack", "CT --zone 1", "CT --zone-orig 1", "NOTRACK", "ACCEPT", "DROP", "LOG", "RETURN"),
    "mangle": (
        "MARK --set-mark 1", "MARK --set-mark 2", "MARK --set-xmark 1/1", "MARK --set-xmark 2/2", "MARK --or-mark 1",
        "MARK --or-mark 2", "MARK --and-mark 0xfffffffe", "MARK --xor-mark 1", "MARK --xor-mark 2",
        "CONNMARK --save-mark", "CONNMARK --restore-mark", "CONNMARK --restore-mark --mask 2",
        "CONNMARK --save-mark --nfmask 1 --ctmask 1", "CONNMARK --restore-mark --nfmask 1 --ctmask 1",
        "CONNMARK --set-xmark 1/1", "CONNMARK --set-mark 2", "TOS --set-tos 0x10", "DSCP --set-dscp 46",
        "CHECKSUM --checksum-fill", "TRACE", "IDLETIMER --timeout 10 --label adv", "AUDIT --type drop",
        "CONNSECMARK --save", "HMARK --hmark-tuple src,dst --hmark-mod 4 --hmark-offset 4 --hmark-rnd 1",
        *_NEUTRAL_TARGETS,
    ),
    "filter": (
        "REJECT", "ACCEPT", "ACCEPT", "DROP", "RETURN", "LOG", "NFLOG", "CONNMARK --set-xmark 1/1",
        "CONNMARK --save-mark", "MARK --set-mark 2", "MARK --set-xmark 1/1",
    ),
    "nat": ("MASQUERADE", "REDIRECT", "ACCEPT", "RETURN", "DNAT", "SNAT", "NETMAP"),
}  # fmt: skip
_TARGETS_BY_FAMILY = {
    4: ("TTL --ttl-set 1", "TTL --ttl-inc 1", "TEE --gateway 192.0.2.1", "ECN --ecn-tcp-remove"),
    6: ("HL --hl-set 1", "HL --hl-inc 1", "TEE --gateway 2001:db8:1::1"),
}
_NAT_TARGETS = {
    ("DNAT", 4): "DNAT --to-destination 192.0.2.77",
    ("DNAT", 6): "DNAT --to-destination 2001:db8:1::77",
    ("SNAT", 4): "SNAT --to-source 203.0.113.2",
    ("SNAT", 6): "SNAT --to-source 2001:db8:3::2",
    ("NETMAP", 4): "NETMAP --to 192.0.2.0/24",
    ("NETMAP", 6): "NETMAP --to 2001:db8:1::/64",
}
_NAT_CHAINS = {"DNAT": ("PREROUTING", "OUTPUT"), "REDIRECT": ("PREROUTING", "OUTPUT"),
               "MASQUERADE": ("POSTROUTING",), "SNAT": ("POSTROUTING",)}  # fmt: skip
_NEEDS_TCP = ("ECN",)


def draw_xtables_rule(draw: Draw, kind: str) -> Part:
    """Return a rule of one family; `kind` is "nft" or "legacy"."""
    family = draw.choice((4, 6))
    table = draw.choice(("raw", "mangle", "mangle", "mangle", "filter", "nat"))
    target = draw.choice(_TARGETS[table] + (_TARGETS_BY_FAMILY[family] if table == "mangle" else ()))
    chain = draw.choice(_NAT_CHAINS.get(target, CHAINS[table]))
    if table == "filter" and target.startswith("REJECT") and draw.random() < 0.3:
        target = "REJECT --reject-with tcp-reset"
    target = _NAT_TARGETS.get((target, family), target)
    matches = [_draw_match(draw, family, table, chain) for _ in range(draw.choice((0, 1, 1, 2)))]
    if target.startswith("REDIRECT") or target.startswith(_NEEDS_TCP) or "tcp-reset" in target:
        matches = ["-p tcp"]
    return Part(f"{IPTABLES[kind, family]} {table}", " ".join(["-A", chain, *_distinct(matches), "-j", target]))


def _draw_match(draw: Draw, family: int, table: str, chain: str) -> str:
    choices = [*_MATCHES, *_MATCHES_BY_FAMILY[family]]
    if table != "raw":
        choices += _FLOW_MATCHES if chain in _BEHIND else [each for each in _FLOW_MATCHES if "--dir out" not in each]
    if chain in ("OUTPUT", "POSTROUTING"):
        choices += _OWNER_MATCHES * 2
    if chain in _BEHIND:
        choices += [f"-o {WAN}", f"! -o {WAN}", f"-o {MESH}", "-o wa+"]
    if chain not in ("OUTPUT", "POSTROUTING"):
        choices += [f"-i {MESH}", f"-i {WAN}", f"! -i {WAN}"]
    return draw.choice(choices)


def _distinct(matches: list[str]) -> list[str]:
    """Return the matches without a second one of the same option, which iptables refuses."""
    options: set[str] = set()
    kept = []
    for match in matches:
        option = match.removeprefix("! ").split()[0]
        if option == "-m" or option not in options:
            kept.append(match)
            options.add(option)
    return kept


def draw_xtables_guard(draw: Draw) -> list[Part]:
    """Return rules of both families that drop what leaves by the uplink without the mark."""
    mark = draw.choice(("-m mark ! --mark 1/1", "-m mark --mark 0/1"))
    more = draw.choice(
        ("", "", "", "-m comment --comment guard", "-m pkttype --pkt-type unicast", "-m limit --limit 9/s")
    )
    rule = " ".join(f"-A POSTROUTING -o {WAN} {mark} {more} -j DROP".split())
    return [Part(f"{IPTABLES['nft', family]} mangle", rule) for family in (4, 6)]
