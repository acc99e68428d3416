"""Fuzz targets for text that programs read: hostile text in it is part of one word, or is refused.

Each example puts hostile text in one place of a value, writes the value, and splits the text as the program that reads
it does. A word that the value did not have before must have the whole hostile text in it.
"""

import json
import random
import re
from functools import cache

from fuzz.hostile_text import draw_text, text_places, with_text
from fuzz.kernel_listings import FIXTURES, load_fixture
from fuzz.text_splitters import SPECIAL, SPLITTERS
from nftpolicy.compiler.block import minimal_block_table
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.object_names import device_chain
from nftpolicy.exceptions import NftpolicyError
from nftpolicy.integration import procd, systemd_dropins, systemd_units
from nftpolicy.integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from nftpolicy.integration.openwrt import openwisp, tree
from nftpolicy.model.packet import FORWARD, FRAME, Packet, parse_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_text, nft_json_decode, nft_text
from nftpolicy.netstate.routing import IpRule, Nexthop, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.reproduce.script import reproduction_script
from nftpolicy.runtime.resolver.servers_file import servers_text
from nftpolicy.runtime.resolver.unbound import unbound_text
from nftpolicy.runtime.watch.repair_plan import format_log_line

POLICY = b"""
name = "policy"
inside = ["lan", "mesh*"]
[uplink.wan]
devices = ["br-wan", "wlan0.7"]
mark = "0x1/0xff"
table = 7
exempt = ["arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp"]
answer = ["ssh", "ping", "udp/500"]
gateways = ["192.0.2.1", "2001:db8::1"]
learn = ["ra"]
[uplink.wan.resolver]
listen = ["192.0.2.54:54", "[2001:db8::54]:54"]
servers = ["192.0.2.53", "fe80::53%br-wan", "2001:db8::53"]
user = 77
[uplink.lte]
devices = ["lte"]
mark = "0x2/0xff"
table = 8
[uplink.lte.resolver]
listen = ["127.0.0.1:55"]
lease = "/run/nftpolicy/lte.lease"
[service.vpn]
uplink = "wan"
group = 800
marks = "cgroup"
cgroup = "system.slice/vpn.service"
to = ["198.51.100.0/24", "2001:db8:9::/48"]
ports = ["udp/10000-10010"]
[service.web]
uplink = "wan"
user = 900
marks = "itself"
[service.wg]
uplink = "lte"
kernel = true
sport = ["udp/51820"]
"""
STATE = NetState(
    rules=(
        IpRule(4, 5, "lookup", 254, 1, 1, "192.0.2.0/24", "198.51.100.0/24", "lo", "wan", (0, 9), 17, (1, 2), tos=4),
        IpRule(6, 6, "unreachable", source="2001:db8::/32", iif="wan"),
        IpRule(4, 32766, table=254),
    ),
    routes=(
        Route(4, 254, "default", gateway="192.0.2.1", device="wan", prefsrc="192.0.2.2", scope="site"),
        Route(4, 254, "192.0.2.0/24", device="wan", kind="prohibit", scope="link", tos=4),
        Route(6, 254, "2001:db8::/32", source="2001:db8::/48", nexthops=(Nexthop("wan", "fe80::1"),), preference="low"),
        Route(6, 254, "2001:db8:2::/48", gateway="fe80::2", device="wan", prefsrc="2001:db8:1::1"),
    ),
    sysctls=(Sysctl("net/ipv4/ip_forward", "1"), Sysctl("net/ipv6/conf/wan/forwarding", "0")),
    devices=(
        Device("lo", ("127.0.0.1/8", "::1/128")),
        Device("wan", ("192.0.2.2/24", "fe80::2/64"), master="br0", kind="bridge", link="eth0", other_names=("enp0",)),
    ),
)  # fmt: skip
PACKETS = (
    Packet(4, parse_address("198.51.100.9"), uid=65534, gid=65534),
    Packet(6, parse_address("2001:db8:9::9"), mark=1, gid=800, bound="wan"),
    Packet(4, parse_address("198.51.100.9"), parse_address("192.0.2.9"), origin=FORWARD, iif="lan"),
    Packet(6, parse_address("fe80::9"), origin=FRAME, bound="wan", cgroup="a/b"),
)


@cache
def policy():
    return load(POLICY, "FILE")[0]


@cache
def tables():
    """Return tables with one rule for each statement of the fixtures, with its sets."""
    forms = [form["json"] for form in load_fixture("forms.json")]
    listings = [load_fixture(str(path.relative_to(FIXTURES)))["nftables"] for path in sorted(FIXTURES.glob("stock/*"))
                if path.suffix == ".json"]  # fmt: skip
    found = [table for listing in listings for table in nft_json_decode.decode_ruleset({"nftables": listing})]
    objects = [{"table": {"family": "inet", "name": "t"}}, {"chain": {"family": "inet", "table": "t", "name": "c"}}]
    rules = [
        {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": expr, "comment": "a rule"}} for expr in forms
    ]
    (form_table,) = nft_json_decode.decode_ruleset({"nftables": [*objects, *rules]})
    singles = [nft.Table("inet", "t", (nft.Chain("c", (rule,)),)) for rule in form_table.chains[0].rules]
    return tuple(_writable([*compile_policy(policy()).tables, *found, *singles]))


def _writable(found):
    for table in found:
        try:
            nft_text.table_text(table)
        except ValueError:
            continue
        yield table


# --- writers: a value, and the texts that it is written as ------------------------------------------


def _table_texts(table):
    yield "nft", nft_text.replaceable_table_text(table)


def _state_texts(state):
    for family in (4, 6):
        for item in (*state.rules, *state.routes):
            if item.family == family:
                yield "ip", ip_text.rule_text(item) if isinstance(item, IpRule) else ip_text.route_text(item)


def _netconfig_texts(some_policy):
    for program in PROGRAMS:
        files = netconfig_files(some_policy, program)
        yield "lines", render_files(files)
        for file in files:
            yield "path", file.path
            yield "sh" if file.path.endswith(("nftpolicy", "-hook", "-settings")) else "unit", file.text


def _unit_texts(some_policy):
    for name, service in some_policy.service.items():
        if service.kernel:
            continue
        resolver = systemd_units.resolver_unit(service.uplink)
        preload = {"LD_PRELOAD": "/usr/lib/x.so", "LIBPACKETMARK_MARK": "0x1/0xff"}
        unit = systemd_dropins.ServiceUnit(name, some_policy, resolver, PATHS[0], PATHS[2], preload)
        yield "unit", systemd_dropins.dropin_text(unit)


def _router_texts(some_policy):
    for path, file in tree.build_tree(some_policy).items():
        yield "path", path
        kind = {"nft": "nft", "conf": "lines", "uci": "uci"}.get(
            path.rpartition(".")[2], "sh" if file.executable else "words"
        )
        yield kind, file.text
    for section in openwisp.template(some_policy)["network"]:
        yield "words", json.dumps(section)


def _block_texts(some_policy):
    yield "nft", nft_text.replaceable_table_text(minimal_block_table(some_policy))
    for table in compile_policy(some_policy).tables:
        yield "nft", nft_text.table_text(table)
    state = compile_policy(some_policy)
    for family in (4, 6):
        yield "ip", ip_text.batch_text(state.rules, state.routes, family)


def _script_texts(case):
    state, packet, device, title = case
    yield "script", reproduction_script(state, packet, device, title)


def _path_texts(paths):
    for text in systemd_units.render_units(*paths).values():
        yield "unit", text
    for text in procd.render_scripts(*paths).values():
        yield "sh", text


def _servers_texts(servers):
    yield "lines", servers_text(servers, {"corp.example": servers})
    yield "lines", unbound_text((), "nobody", servers, {"corp.example": servers})


def _log_texts(facts):
    yield "log", format_log_line(facts)


CASES = tuple((STATE, packet, "wan", "a title") for packet in PACKETS)
PATHS = ("/usr/bin/nftpolicy", "/usr/sbin/nft", "/etc/nftpolicy/policy.toml")
FACTS = {"event": "repaired", "object": "chain inet nftpolicy guard", "by": "nft", "names": ("a", "b")}
WRITERS = {
    "text-tables": (_table_texts, tables),
    "text-state": (_state_texts, lambda: (STATE,)),
    "text-script": (_script_texts, lambda: CASES),
    "text-netconfig": (_netconfig_texts, lambda: (policy(),)),
    "text-units": (_unit_texts, lambda: (policy(),)),
    "text-router": (_router_texts, lambda: (policy(),)),
    "text-compiled": (_block_texts, lambda: (policy(),)),
    "text-paths": (_path_texts, lambda: (PATHS,)),
    "text-servers": (_servers_texts, lambda: (policy().uplink["wan"].resolver.servers,)),
    "text-log": (_log_texts, lambda: (FACTS,)),
}  # fmt: skip


def writer_check(name):
    """Return the check of the examples of a writer."""

    def check(seed):
        check_writer(name, seed)

    return check


def check_writer(name, seed):
    """Check that hostile text in one place adds no word of its own, or is refused by one line."""
    write, words, texts, values = _prepared(name)
    value, path, old, text = draw_place(values, seed)
    try:
        hostile = list(write(with_text(value, path, text)))
    except KeyError:
        assert path[-1] in KEYS or path[-2] in KEYS, (path, text)
        return
    except (ValueError, NftpolicyError) as error:
        message = str(error)
        assert message.isprintable() and message, (path, text, message)
        return
    for kind, written in hostile:
        if written in texts:  # the hostile text is not in this one
            continue
        for word in SPLITTERS[kind](written):
            is_known = word in words[kind] or word.replace(text, old) in words[kind]
            assert is_known or _is_own(word, text) or _is_part(word, text, path), (kind, path, text, word)


def draw_place(values, seed):
    """Return a value, the path of a place of text in it, the text there, and hostile text."""
    choices = random.Random(seed)
    value, places = choices.choice(values)
    return value, *choices.choice(places), draw_text(choices)


def hostile_texts(name, seed):
    """Return a value and its texts, without and with hostile text; None if that is refused, or written nowhere."""
    write, _, _, values = _prepared(name)
    value, path, _, text = draw_place(values, seed)
    try:
        changed = with_text(value, path, text)
        pair = list(write(value)), list(write(changed))
    except (ValueError, NftpolicyError, KeyError):
        return None
    return (value, changed, *pair) if pair[0] != pair[1] else None


@cache
def _prepared(name):
    """Return a writer, the words of all its texts by kind, the texts, and its values with their places of text."""
    write, values = WRITERS[name]
    words, texts = {}, set()
    for value in values():
        for kind, text in write(value):
            words.setdefault(kind, set()).update(SPLITTERS[kind](text))
            texts.add(text)
        for _, text in text_places(value):  # beside hostile text, another one can be written in another form
            for known in words.values():
                known.update(re.split("[ ,]", text))
    return write, words, texts, [(value, _places(value)) for value in values()]


def _places(value):
    return [place for place in text_places(value) if not NOT_WRITTEN.intersection(place[0])]


NOT_WRITTEN = {"origin", "learn", *(("key", key) for key in FACTS)}
KEYS = {"exempt", "uplink", "marks"}  # names of other objects
# Checksums, UUIDs, link-layer addresses, keywords before another value, and addresses that a script chooses itself.
DERIVED = re.compile(
    r"[0-9a-f]{64}|(uuid=)?[0-9a-f-]{36}|(in document: )?(inet6?|meta|pref|[0-9]+)"
    r"|in document: (whole\(')?(02:[0-9a-f:]{14}|(fe80:|::1|127\.|2001:db8:|192\.0\.2\.|203\.)[0-9a-f:./]*)(',)?"
    r"|in document: .*b'[^']*'"
)


def _is_part(word, text, path):
    """Return True for a part of a value that is a list by itself: flags "a,b" of a mask, or a NAT range "a-b"."""
    separators = {"right": ",", "and_mask": ",", "or_bits": ",", "address": "-"}
    return any(word in text.split(separators[name]) for name in path if name in separators)


def _is_own(word, text):
    """Return True if a word is hostile text as a value, or a remark that something is left out."""
    if word.startswith(SPECIAL):
        return False
    if word.startswith("caution: ") or word == "echo":
        return word.isprintable()
    swapped = text.translate(str.maketrans("./@", "/./"))  # in names of sysctls
    escaped = device_chain(text if text.isprintable() else "").removeprefix("device-")
    forms = (escaped or text, text, text.replace("/", "-"), text.replace("@", "/"), text.replace("\t", " "), swapped)
    return any(form in word for form in forms) or DERIVED.fullmatch(word) is not None
