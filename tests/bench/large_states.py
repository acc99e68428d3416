"""Large states for the prover: rulesets in the shape of real machines, and hard ones."""

from random import Random

from nftpolicy.model.packet import format_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import (
    AnonymousSet,
    Bitwise,
    Chain,
    Counter,
    Hook,
    Mangle,
    Match,
    Meta,
    Payload,
    Rule,
    Table,
)
from nftpolicy.netstate.routing import TABLE_LOCAL, TABLE_MAIN, IpRule, Route
from nftpolicy.netstate.state import NetState

WAN, MARK = "wan", 1
FORGOTTEN = "forgets the mark"
_TABLES = (100, 101)
_WORN = Match(Bitwise(Meta("mark"), and_mask=MARK), MARK)
_UNWORN = Match(Bitwise(Meta("mark"), and_mask=MARK), MARK, "!=")
_OUT = Match(Meta("oifname"), WAN)


def usual(rules: int, routes: int, ip_rules: int, forgets: bool = False) -> NetState:
    """Return a state with so many rules at output and at postrouting, and routing beside them.

    Every rule that accepts at the uplink matches the mark; with `forgets` one of them does not.
    """
    chance = Random(1)
    output = tuple(_plain(chance) for _ in range(rules))
    guard = [Rule((Match(Meta("oifname"), AnonymousSet(frozenset((WAN, "lo"))), "!="), _WORN, nft.DROP))]
    guard += [_at_uplink(chance, forgets and at == rules * 2 // 3) for at in range(rules)]
    guard.append(Rule((_OUT, _UNWORN, nft.DROP)))
    chains = (
        Chain("output", output, Hook("route", "output", -150)),
        Chain("guard", tuple(guard), Hook("filter", "postrouting", 100)),
    )
    link = Chain("wan", (Rule((_WORN, nft.ACCEPT)),), Hook("filter", "egress", 0, "drop", WAN))
    ways = [Route(4, chance.choice((TABLE_MAIN, *_TABLES)), _net(chance), device=chance.choice(("lan", "mesh")))
            for _ in range(routes)]  # fmt: skip
    source_rules = [IpRule(4, 10 + at, table=chance.choice(_TABLES), source=_net(chance)) for at in range(ip_rules)]
    # Behind a guard of the link no rule above it can be missed.
    tables = (Table("inet", "usual", chains), *(() if forgets else (Table("netdev", "usual", (link,)),)))
    return NetState(
        tables,
        (IpRule(4, 0, table=TABLE_LOCAL), *source_rules, IpRule(4, 5000, table=1, mark=MARK, mask=MARK),
         IpRule(4, 32766, table=TABLE_MAIN)),
        (*ways, Route(4, 1, "default", device=WAN)),
    )  # fmt: skip


def _plain(chance: Random) -> Rule:
    other = Mangle(Meta("mark"), Bitwise(Meta("mark"), or_bits=2))
    return Rule((*_matches(chance), Counter(), chance.choice((nft.ACCEPT, nft.DROP, other))))


def _at_uplink(chance: Random, forgets: bool) -> Rule:
    matches = (*_matches(chance), _OUT)
    if forgets:
        server = Match(Payload("ip", "daddr"), "198.51.100.7"), Match(Meta("l4proto"), "udp")
        return Rule((*server, _OUT, Match(Payload("th", "dport"), 4711), Counter(), nft.ACCEPT), FORGOTTEN)
    if chance.random() < 0.5:
        return Rule((*matches, Counter(), nft.DROP))
    return Rule((*matches, _WORN, Counter(), nft.ACCEPT))


def _net(chance: Random) -> str:
    length = chance.randint(12, 28)
    return f"{format_address(4, chance.getrandbits(32) >> 32 - length << 32 - length)}/{length}"


def _matches(chance: Random) -> list[Match]:
    found = []
    for name in chance.sample(("daddr", "saddr", "l4proto", "dport", "sport", "skuid"), chance.randint(2, 4)):
        if name in ("daddr", "saddr"):
            found.append(Match(Payload("ip", name), _net(chance)))
        elif name == "l4proto":
            found.append(Match(Meta(name), chance.choice(("tcp", "udp"))))
        elif name == "skuid":
            found.append(Match(Meta(name), chance.randrange(70_000)))
        else:
            low = chance.randrange(1, 65_000)
            high = low + chance.choice((0, 0, 0, 1, 9, 500))
            found.append(Match(Payload("th", name), low if low == high else f"{low}-{high}"))
    return found


# --- hard on purpose -------------------------------------------------------------------

_TOPS = {"daddr": (1 << 32) - 1, "saddr": (1 << 32) - 1, "dport": 0xFFFF, "sport": 0xFFFF, "skuid": 0xFFFFFFFE}
_KEYS = {"daddr": Payload("ip", "daddr"), "saddr": Payload("ip", "saddr"), "dport": Payload("th", "dport"),
         "sport": Payload("th", "sport"), "skuid": Meta("skuid"), "l4proto": Meta("l4proto")}  # fmt: skip

Part = dict[str, tuple[int, int]]


def covered(rules: int, hole: bool = False) -> NetState:
    """Return a guard of so many rules: boxes of accepted packets, each cut into pieces that are dropped before.

    No packet is accepted, and no rule says so. With `hole` one piece of one box is missing.
    """
    chance, groups, count = Random(1), [], 0
    while count < rules - 1:
        part = _part(chance)
        groups.append(([(piece, nft.DROP) for piece in _cut(chance, part)], (part, nft.ACCEPT)))
        count += len(groups[-1][0]) + 1
    if hole:
        groups[len(groups) * 2 // 3][0].pop()
    found = [_rule(part, verdict) for pieces, whole in groups for part, verdict in (*pieces, whole)]
    found.append(Rule((_OUT, _UNWORN, nft.DROP)))
    chain = Chain("guard", tuple(found), Hook("filter", "postrouting", 100))
    return NetState((Table("inet", "covered", (chain,)),))


def _part(chance: Random) -> Part:
    found: Part = {}
    for name in chance.sample(("daddr", "saddr", "l4proto", "dport", "sport", "skuid"), chance.randint(2, 4)):
        if name in ("daddr", "saddr"):
            rest = 32 - chance.randint(12, 28)
            low = chance.getrandbits(32) >> rest << rest
            found[name] = low, low | (1 << rest) - 1
        elif name == "l4proto":
            found[name] = (chance.choice((6, 17)),) * 2
        else:
            low = chance.randrange(1, 65_000)
            found[name] = low, low + chance.choice((0, 0, 1, 9, 99, 500))
    return found


def _cut(chance: Random, part: Part) -> list[Part]:
    pieces, wanted = [dict(part)], chance.randint(2, 6)
    while len(pieces) < wanted:
        at, name = chance.randrange(len(pieces)), chance.choice(("daddr", "dport", "skuid", "saddr"))
        low, high = pieces[at].get(name, (0, _TOPS[name]))
        if low < high:
            middle = chance.randrange(low, high)
            pieces.append({**pieces[at], name: (middle + 1, high)})
            pieces[at] = {**pieces[at], name: (low, middle)}
    return pieces


def _rule(part: Part, verdict: nft.Verdict) -> Rule:
    matches = [Match(Meta("nfproto"), "ipv4")]
    for name, (low, high) in part.items():
        first, last = (format_address(4, one) if name.endswith("addr") else one for one in (low, high))
        matches.append(Match(_KEYS[name], first if low == high else f"{first}-{last}"))
    return Rule((*matches, verdict))
