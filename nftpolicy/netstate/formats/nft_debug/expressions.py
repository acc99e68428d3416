# SPDX-License-Identifier: BSD-2-Clause
"""Grammar of libnftnl's text of expressions, and the attributes that each was printed from.

Source: libnftnl 1.2.1 to 1.3.1, src/expr/*.c, the functions *_snprintf. Expressions with values of registers, whose
length the text does not show, are in rule_program.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..nft_bytecode.chains import FAMILIES
from ..nft_bytecode.loads import CT_KEYS, META_KEYS
from .messages import SECONDS, attribute, expression, list_of, not_shown, number, text

Groups = Mapping[str, str]
Encoder = Callable[[Groups], bytes]
_REG = r"reg (?P<{}>\d+)"

# nftables' names of keys differ from libnftnl's (src/expr/meta.c, src/expr/ct.c).
_LIBNFTNL_META = {
    "length": "len", "ibrname": "bri_iifname", "obrname": "bri_oifname", "random": "prandom", "ipsec": "secpath",
    "ibrpvid": "bri_iifpvid", "ibrvproto": "bri_iifvproto",
}  # fmt: skip
_LIBNFTNL_CT = {
    "l3proto": "l3protocol", "proto-src": "proto_src", "proto-dst": "proto_dst", "ip saddr": "src_ip",
    "ip daddr": "dst_ip", "ip6 saddr": "src_ip6", "ip6 daddr": "dst_ip6",
}  # fmt: skip
_META = {_LIBNFTNL_META.get(layout[0], layout[0]): key for key, layout in META_KEYS.items()}
_CT = {_LIBNFTNL_CT.get(layout[0], layout[0]): key for key, layout in CT_KEYS.items()} | {"src": 8, "dst": 9}
META_SIZES = {name: META_KEYS[key][2] for name, key in _META.items()}
CT_SIZES = {name: CT_KEYS[key][2] for name, key in _CT.items() if key in CT_KEYS}
_DIRECTIONS = {"original": 0, "reply": 1}
_BASES = {"link": 0, "network": 1, "transport": 2, "inner": 3}
_RT = {"classid": 0, "nexthop4": 1, "nexthop6": 2, "tcpmss": 3, "ipsec": 4}
_SOCKET = {"transparent": 0, "mark": 1, "wildcard": 2, "cgroupv2": 3}
_FIB_RESULTS, _FIB_FLAGS = {"oif": 1, "oifname": 2, "type": 3}, {"saddr": 1, "daddr": 2, "mark": 4, "iif": 8, "oif": 16}
_FIB_PRESENT = 32
_OPTIONS = {" ipv6": 0, " tcpopt": 1, " ipv4": 2}
_XFRM_KEYS = {"daddr4": 1, "daddr6": 2, "saddr4": 3, "saddr6": 4, "reqid": 5, "spi": 6}
_FAMILY_NUMBERS = {name: number for number, name in FAMILIES.items()}
_LOG_FLAGS = {"tcpseq": 1, "tcpopt": 2, "ipopt": 4, "uid": 8, "macdecode": 32}
_QUEUE_FLAGS = {"bypass": 1, "fanout": 2}


def _options(groups: Groups, kinds: Mapping[str, tuple[int, int]], base: int = 10) -> list[bytes]:
    """Return an attribute for each group that the text has; `kinds` are type and size in bytes."""
    return [number(kind, int(groups[name], base), size) for name, (kind, size) in kinds.items() if groups[name]]


def _words(flags: str | None, names: Mapping[str, int]) -> int:
    return sum(names[word] for word in (flags or "").split())


def _meta_load(groups: Groups) -> bytes:
    return expression("meta", number(1, int(groups["dreg"])), number(2, _META[groups["key"]]))


def _meta_set(groups: Groups) -> bytes:
    return expression("meta", number(2, _META[groups["key"]]), number(3, int(groups["sreg"])))


def _ct(groups: Groups) -> bytes:
    register = number(1, int(groups["dreg"])) if groups.get("dreg") else number(4, int(groups["sreg"]))
    direction = [number(3, _DIRECTIONS[groups["dir"]], 1)] if groups["dir"] else []
    return expression("ct", register, number(2, _CT[groups["key"]]), *direction)


def _payload(groups: Groups) -> list[bytes]:
    return [
        number(2, _BASES[groups["base"]]),
        number(3, int(groups["offset"])),
        number(4, int(groups["len"])),
    ]


def _payload_load(groups: Groups) -> bytes:
    return expression("payload", number(1, int(groups["dreg"])), *_payload(groups))


def _payload_write(groups: Groups) -> bytes:
    checksum = [number(6, int(groups["ctype"])), number(7, int(groups["coff"])), number(8, int(groups["cflags"], 16))]
    return expression("payload", number(5, int(groups["sreg"])), *_payload(groups), *checksum)


def _rt(groups: Groups) -> bytes:
    return expression("rt", number(1, int(groups["dreg"])), number(2, _RT[groups["key"]]))


def _socket(groups: Groups) -> bytes:
    hidden = [not_shown("level")] if groups["key"] == "cgroupv2" else []
    return expression("socket", number(1, _SOCKET[groups["key"]]), number(2, int(groups["dreg"])), *hidden)


def _fib(groups: Groups) -> bytes:
    flags = sum(_FIB_FLAGS[word] for word in groups["flags"].split(" . "))
    flags |= _FIB_PRESENT if groups["present"] else 0
    return expression("fib", number(1, int(groups["dreg"])), number(2, _FIB_RESULTS[groups["key"]]), number(3, flags))


def _exthdr(groups: Groups, *further: bytes) -> bytes:
    parts = (number(2, int(groups["type"]), 1), number(3, int(groups["offset"])), number(4, int(groups["len"])))
    return expression("exthdr", *parts, number(6, _OPTIONS[groups["op"]]), *further)


def _exthdr_load(groups: Groups) -> bytes:
    return _exthdr(groups, number(1, int(groups["dreg"])), number(5, 1 if groups["present"] else 0))


def _numgen(groups: Groups) -> bytes:
    mode = {"inc": 0, "random": 1}[groups["mode"]]
    parts = (number(1, int(groups["dreg"])), number(2, int(groups["mod"])), number(3, mode))
    return expression("numgen", *parts, number(4, int(groups["offset"] or 0)))


def _symhash(groups: Groups) -> bytes:
    parts = (number(2, int(groups["dreg"])), number(4, int(groups["mod"])), number(6, int(groups["offset"] or 0)))
    return expression("hash", *parts, number(7, 1))


def _jhash(groups: Groups) -> bytes:
    parts = (number(1, int(groups["sreg"])), number(2, int(groups["dreg"])), number(3, int(groups["len"])))
    seed_value = int(groups["seed"], 16)
    seed = number(5, seed_value) if seed_value else b""  # 0 also stands for a seed of the kernel's choice
    return expression(
        "hash", *parts, number(4, int(groups["mod"])), seed, number(6, int(groups["offset"] or 0)), number(7, 0)
    )


def _xfrm(groups: Groups) -> bytes:
    direction = {"in": 0, "out": 1}[groups["dir"]]
    parts = (number(1, int(groups["dreg"])), number(2, _XFRM_KEYS[groups["key"]]), number(3, direction, 1))
    return expression("xfrm", *parts, number(4, int(groups["spnum"])))


def _limit(groups: Groups) -> bytes:
    unit = SECONDS[groups["unit"]] * int(groups["times"] or 1)
    kind = {"packets": 0, "bytes": 1}[groups["type"]]
    parts = (number(1, int(groups["rate"]), 8), number(2, unit, 8), number(3, int(groups["burst"])))
    return expression("limit", *parts, number(4, kind), number(5, int(groups["flags"], 16)))


def _quota(groups: Groups) -> bytes:
    return expression("quota", number(1, int(groups["bytes"]), 8), number(2, int(groups["flags"])))


def _connlimit(groups: Groups) -> bytes:
    return expression("connlimit", number(1, int(groups["count"])), number(2, int(groups["flags"], 16)))


def _log(groups: Groups) -> bytes:
    prefix = [text(2, groups["prefix"])] if groups["prefix"] is not None else []
    kinds = {"group": (1, 2), "level": (5, 4)}
    sizes = [(3, int(groups["snaplen"] or 0), 4), (4, int(groups["qthreshold"] or 0), 2)]
    optional = [number(kind, value, size) for kind, value, size in sizes if value]  # 0 is printed if none is set
    flags = _words(groups["flags"], _LOG_FLAGS)
    return expression("log", *prefix, *_options(groups, kinds), *optional, *([number(6, flags)] if flags else []))


def _reject(groups: Groups) -> bytes:
    return expression("reject", number(1, int(groups["type"])), number(2, int(groups["code"]), 1))


def _queue(groups: Groups) -> bytes:
    first = int(groups["num"])
    total = int(groups["last"] or first) - first + 1
    flags = number(3, _words(groups["flags"], _QUEUE_FLAGS), 2)
    return expression("queue", number(1, first, 2), number(2, total, 2), flags)


def _queue_register(groups: Groups) -> bytes:
    flags = number(3, _words(groups["flags"], _QUEUE_FLAGS), 2)
    return expression("queue", number(4, int(groups["sreg"])), flags)


def _nat(groups: Groups) -> bytes:
    kinds = {"amin": (3, 4), "amax": (4, 4), "pmin": (5, 4), "pmax": (6, 4)}
    flags = _options(groups, {"flags": (7, 4)}, 16)
    family = number(2, _FAMILY_NUMBERS[groups["family"]])
    kind = number(1, {"snat": 0, "dnat": 1}[groups["kind"]])
    return expression("nat", kind, family, *_options(groups, kinds), *flags)


def _masquerade(groups: Groups) -> bytes:
    ports = _options(groups, {"pmin": (2, 4), "pmax": (3, 4)})
    return expression("masq", *ports, *_options(groups, {"flags": (1, 4)}, 16))


def _redirect(groups: Groups) -> bytes:
    ports = _options(groups, {"pmin": (1, 4), "pmax": (2, 4)})
    return expression("redir", *ports, *_options(groups, {"flags": (3, 4)}, 16))


def _tproxy(groups: Groups) -> bytes:
    family = number(1, _FAMILY_NUMBERS[groups["family"]] if groups["family"] else 0)
    return expression("tproxy", family, *_options(groups, {"addr": (2, 4), "port": (3, 4)}))


def _dup(groups: Groups) -> bytes:
    return expression("dup", *_options(groups, {"addr": (1, 4), "dev": (2, 4)}))


def _fwd(groups: Groups) -> bytes:
    return expression("fwd", *_options(groups, {"dev": (1, 4), "addr": (2, 4), "family": (3, 4)}))


def _objref(groups: Groups) -> bytes:
    if groups["set"]:
        return expression("objref", number(3, int(groups["sreg"])), text(4, groups["set"]))
    return expression("objref", number(1, int(groups["type"])), text(2, groups["name"]))


def _extension(groups: Groups, kind: str) -> bytes:
    # The data of the extension are not shown. Only its name and revision can be judged.
    return expression(kind, text(1, groups["name"]), number(2, int(groups["rev"])))


_DREG, _SREG, _OFFSET = _REG.format("dreg"), _REG.format("sreg"), r"(?: offset (?P<offset>\d+))?"
_PORTS = r"(?:proto_min reg (?P<pmin>\d+) )?(?:proto_max reg (?P<pmax>\d+) )?(?:flags 0x(?P<flags>[0-9a-f]+) )?"
_PLACE = r"(?P<len>\d+)b @ (?P<base>\w+) header \+ (?P<offset>\d+)"
_OPTION = r"(?P<len>\d+)b @ (?P<type>\d+) \+ (?P<offset>\d+)"
_CHECKSUM = r"csum_type (?P<ctype>\d+) csum_off (?P<coff>\d+) csum_flags 0x(?P<cflags>[0-9a-f]+) "
_ADDRESSES = r"(?:addr_min reg (?P<amin>\d+) )?(?:addr_max reg (?P<amax>\d+) )?"
_DIRECTION = r"(?: , dir (?P<dir>\w+))?"
_FAMILY = r"(?P<family>ip6?|inet)"

_LOADS: tuple[tuple[str, str, Encoder], ...] = (
    ("meta", rf"load (?P<key>\w+) => {_DREG} ", _meta_load),
    ("ct", rf"load (?P<key>\w+) => {_DREG}{_DIRECTION} ", _ct),
    ("payload", rf"load {_PLACE} => {_DREG} ", _payload_load),
    ("rt", rf"load (?P<key>\w+) => {_DREG} ", _rt),
    ("socket", rf"load (?P<key>\w+) => {_DREG} ", _socket),
    ("fib", rf"(?P<flags>\w+(?: \. \w+)*) (?P<key>\w+)(?P<present> present)? => {_DREG} ", _fib),
    ("exthdr", rf"load(?P<op>( \w+)?) {_OPTION}(?P<present> present)? => {_DREG} ", _exthdr_load),
    ("numgen", rf"{_DREG} = (?P<mode>inc|random) mod (?P<mod>\d+){_OFFSET} ", _numgen),
    ("hash", rf"{_DREG} = symhash\(\) % mod (?P<mod>\d+){_OFFSET} ", _symhash),
    ("hash", rf"{_DREG} = jhash\({_SREG}, (?P<len>\d+), 0x(?P<seed>[0-9a-f]+)\) % mod (?P<mod>\d+){_OFFSET} ", _jhash),
    ("xfrm", rf"load (?P<dir>in|out) (?P<spnum>\d+) (?P<key>\w+) => {_DREG} ", _xfrm),
    ("osf", r"dreg (?P<dreg>\d+) ", lambda groups: expression("osf", number(1, int(groups["dreg"])), not_shown("ttl"))),
    ("tunnel", rf"load (?P<key>\w+) => {_DREG} ",
     lambda groups: expression("tunnel", number(2, int(groups["dreg"])), not_shown("mode"))),
)  # fmt: skip
_EFFECTS: tuple[tuple[str, str, Encoder], ...] = (
    ("meta", rf"set (?P<key>\w+) with {_SREG} ", _meta_set),
    ("ct", rf"set (?P<key>\w+) with {_SREG}{_DIRECTION} ", _ct),
    ("payload", rf"write {_SREG} => {_PLACE} {_CHECKSUM}", _payload_write),
    ("exthdr", rf"write(?P<op>( \w+)?) {_SREG} => {_OPTION} ",
     lambda groups: _exthdr(groups, number(7, int(groups["sreg"])))),
    ("counter", r"pkts \d+ bytes \d+ ", lambda _: expression("counter")),
    ("last", r"(?:never|\d+) ", lambda _: expression("last")),
    ("limit", r"rate (?P<rate>\d+)/(?:(?P<times>\d+) )?(?P<unit>\w+) burst (?P<burst>\d+) type (?P<type>\w+) "
     r"flags 0x(?P<flags>[0-9a-f]+) ", _limit),
    ("quota", r"bytes (?P<bytes>\d+) consumed \d+ flags (?P<flags>\d+) ", _quota),
    ("connlimit", r"count (?P<count>\d+) flags (?P<flags>[0-9a-f]+) ", _connlimit),
    ("log", r"(?:prefix (?P<prefix>.*?) )??"
     r"(?:group (?P<group>\d+) snaplen (?P<snaplen>\d+) qthreshold (?P<qthreshold>\d+) )?"
     r"(?:level (?P<level>\d+) )?(?P<flags>(?:(?:tcpseq|tcpopt|ipopt|uid|macdecode) )*)", _log),
    ("notrack", "", lambda _: expression("notrack")),
    ("flow_offload", r"flowtable (?P<name>\S+) ", lambda groups: expression("flow_offload", text(1, groups["name"]))),
    ("reject", r"type (?P<type>\d+) code (?P<code>\d+) ", _reject),
    ("queue", r"num (?P<num>\d+)(?:-(?P<last>\d+))? (?P<flags>(?:(?:bypass|fanout) )*)", _queue),
    ("queue", r"sreg_qnum (?P<sreg>\d+) (?P<flags>(?:(?:bypass|fanout) )*)", _queue_register),
    ("nat", rf"(?P<kind>snat|dnat) {_FAMILY} {_ADDRESSES}{_PORTS}", _nat),
    ("masq", _PORTS, _masquerade),
    ("redir", _PORTS, _redirect),
    ("tproxy", rf"(?:{_FAMILY} )?(?:addr reg (?P<addr>\d+) )?(?:port reg (?P<port>\d+) )?", _tproxy),
    ("dup", r"(?:sreg_addr (?P<addr>\d+) )?(?:sreg_dev (?P<dev>\d+) )?", _dup),
    ("fwd", r"sreg_dev (?P<dev>\d+) (?:sreg_addr (?P<addr>\d+) )?(?:nfproto (?P<family>\d+) )?", _fwd),
    ("objref", r"(?:sreg (?P<sreg>\d+) set (?P<set>\S+) |type (?P<type>\d+) name (?P<name>\S+) )", _objref),
    ("match", r"name (?P<name>\S+) rev (?P<rev>\d+) ", lambda groups: _extension(groups, "match")),
    ("target", r"name (?P<name>\S+) rev (?P<rev>\d+) ", lambda groups: _extension(groups, "target")),
)  # fmt: skip
_LOAD_PATTERNS = [(name, re.compile(pattern), encode) for name, pattern, encode in _LOADS]
_EFFECT_PATTERNS = [(name, re.compile(pattern), encode) for name, pattern, encode in _EFFECTS]


Encoded = tuple[bytes, Groups]  # an expression, and the parts of its text by name


def encode_load(name: str, arguments: str) -> Encoded | None:
    """Return an expression that only loads a register; None for another, or for a word that is not known."""
    return _encode(name, arguments, _LOAD_PATTERNS)


def encode_effect(name: str, arguments: str) -> Encoded | None:
    """Return an expression that loads no register; None for another, or for a word that is not known."""
    return _encode(name, arguments, _EFFECT_PATTERNS)


def _encode(name: str, arguments: str, patterns: list[tuple[str, re.Pattern[str], Encoder]]) -> Encoded | None:
    for known, pattern, encode in patterns:
        match = pattern.fullmatch(arguments) if known == name else None
        if match is None:
            continue
        try:
            return encode(match.groupdict()), match.groupdict()
        except (KeyError, OverflowError):  # an unknown name, a number that its attribute has no room for
            return None
    return None


_DYNSET = re.compile(
    r"(?P<op>add|update|delete) reg_key (?P<key>\d+) set (?P<set>\S+) (?:sreg_data (?P<data>\d+) )?"
    r"(?:timeout (?P<timeout>\d+)ms )?(?P<statements>(?:expr \[ \w+ [^][]*\] )*)"
)
_STATEMENT = re.compile(r"expr \[ (?P<name>\w+) (?P<arguments>[^][]*)\] ")


def encode_dynset(arguments: str) -> tuple[bytes, str, int] | None:
    """Return an update of a set, the name of the set, and the register of the key; None if it is unknown."""
    match = _DYNSET.fullmatch(arguments)
    if match is None:
        return None
    op = number(3, {"add": 0, "update": 1, "delete": 2}[match["op"]])
    parts = [text(1, match["set"]), op, number(4, int(match["key"]))]
    if match["data"]:
        parts.append(number(5, int(match["data"])))
    if match["timeout"] and int(match["timeout"]):
        parts.append(number(6, int(match["timeout"]), 8))
    statements = [encode_effect(each["name"], each["arguments"]) for each in _STATEMENT.finditer(match["statements"])]
    if None in statements:
        return None
    if statements:
        parts.append(attribute(10, list_of(each[0] for each in statements if each is not None)))
    return expression("dynset", *parts), match["set"], int(match["key"])
