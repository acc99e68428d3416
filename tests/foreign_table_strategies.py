"""Hypothesis strategies for foreign tables beside a policy: harmless ones, and arbitrary ones."""

from attrs import evolve
from hypothesis import strategies as st

from nftpolicy.model.packet import format_address
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import AnonymousSet, Bitwise, Chain, Concat, Ct, Hook, Mangle, Match, Meta, Payload, Rule
from nftpolicy.policy.mark import FULL_MASK
from tests.packet_strategies import aims

PRIORITIES = (-300, -150, 0, 300, 20000)
HOOKS = {
    "ip": ("prerouting", "input", "forward", "output", "postrouting"),
    "netdev": ("egress", "egress", "ingress"),
}
HOOKS |= {"ip6": HOOKS["ip"], "inet": HOOKS["ip"]}
NOT_UNDERSTOOD = nft.UnknownStatement('{"xt": {"type": "target", "name": "MARK"}}')


class Parts:
    """Parts of rules, with the values that a policy distinguishes."""

    def __init__(self, policy, ports=None):
        self.aim = aims(policy, ports)
        self.taken = 0
        for uplink in policy.uplink.values():
            self.taken |= uplink.mark.mask
        self.masks = (*(uplink.mark.mask for uplink in policy.uplink.values()), FULL_MASK, 1, 0xFF00)

    def match(self):
        """Generate any supported match."""
        aim, of = self.aim, st.sampled_from
        equal = of(("==", "==", "!="))
        device = st.builds(Match, of((Meta("oifname"), Meta("iifname"))), of((*aim.devices, "lo", "e*")), equal)
        several = st.frozensets(of((*aim.devices, "lo")), min_size=2, max_size=3).map(AnonymousSet)
        devices = st.builds(Match, of((Meta("oifname"), Meta("iifname"))), several, equal)
        key = of((Meta("mark"), Ct("mark")))
        mark = st.builds(lambda key, mask, value, op: Match(_masked(key, mask), value & mask, op), key, of(self.masks),
                         of(aim.marks), equal)  # fmt: skip
        owner = st.builds(Match, st.just(Meta("skuid")), of(aim.uids), equal)
        group = st.builds(Match, st.just(Meta("skgid")), of(aim.gids), equal)
        port = st.builds(Match, of((Payload("th", "dport"), Payload("udp", "dport"), Payload("tcp", "sport"))),
                         of(aim.ports), equal)  # fmt: skip
        layer = st.builds(Match, st.just(Meta("l4proto")), of(("tcp", "udp", "ipv6-icmp", "icmp")), equal)
        where = st.one_of(
            *(
                st.builds(
                    lambda protocol, end, family, address, op: Match(Payload(protocol, end), format_address(family, address), op),
                    st.just(protocol), of(("daddr", "saddr")), st.just(family), of(aim.addresses[family]), equal,
                )
                for protocol, family in (("ip", 4), ("ip6", 6))
            )
        )  # fmt: skip
        flow = of((
            Match(Ct("state"), "established,related", "in"),
            Match(Ct("state"), "new", "in"),
            Match(Ct("state"), "new", "!"),
            Match(Ct("direction"), "reply"),
            Match(Ct("direction"), "original", "!="),
        ))  # fmt: skip
        kind = of((
            Match(Meta("nfproto"), "ipv4"),
            Match(Meta("pkttype"), "host", "!="),
            Match(Payload("tcp", "flags"), "rst", "&"),
            Match(Payload("icmpv6", "type"), "nd-neighbor-solicit"),
            Match(Payload("ip6", "hoplimit"), 255),
        ))  # fmt: skip
        together = st.builds(
            lambda rows: Match(Concat((Meta("l4proto"), Payload("th", "dport"))), AnonymousSet(rows)),
            st.frozensets(st.tuples(of(("tcp", "udp")), of(aim.ports)), min_size=1, max_size=3),
        )
        return st.one_of(device, devices, mark, mark, owner, group, port, layer, where, flow, kind, together)

    def doubtful(self):
        """Generate unsupported matches, and matches that depend on time or on earlier packets."""
        return st.sampled_from((
            Match(nft.UnknownExpression('{"osf": {"key": "name"}}'), "Linux"),
            Match(Meta("cgroup"), 5),
            Match(nft.Socket("transparent"), 1),
            Match(nft.Fib("type", ("daddr",)), "local"),
            Match(Meta("skuid"), nft.SetRef("changing")),
            Match(Meta("oifname"), nft.SetRef("changing"), "!="),
            Match(Meta("oifname"), nft.SetRef("devices")),
            Match(Meta("mark"), nft.SetRef("missing")),
            nft.Limit(10, "second"),
            nft.Quota(1000),
            nft.CtCount(3, over=True),
            nft.SetUpdate("add", "changing", Meta("skuid")),
        ))  # fmt: skip

    def harmless_write(self):
        """Writes that no bit of an uplink's mark changes with."""
        free = ~self.taken & FULL_MASK
        keys = st.sampled_from((Meta("mark"), Ct("mark")))
        bits = st.sampled_from((0, free, free & -free, free & 0xFF00))
        return st.builds(lambda key, keep, put: Mangle(key, Bitwise(key, and_mask=keep | self.taken, or_bits=put & free)), keys,
                         bits, bits)  # fmt: skip

    def write(self):
        """Generate any write."""
        aim, of = self.aim, st.sampled_from
        keys = of((Meta("mark"), Meta("mark"), Ct("mark")))
        plain = st.builds(Mangle, keys, of(aim.marks))
        some = st.builds(lambda key, of_, keep, put: Mangle(key, Bitwise(of_, and_mask=keep, or_bits=put)), keys,
                         of((Meta("mark"), Ct("mark"))), of((*self.masks, FULL_MASK)), of((0, *aim.marks)))  # fmt: skip
        whole = st.builds(Mangle, keys, of((Meta("mark"), Ct("mark"), Meta("skuid"))))
        port = st.builds(Mangle, of((Payload("udp", "dport"), Payload("tcp", "sport"))), of(aim.ports))
        address = of([*aim.addresses[4]]).map(lambda one: Mangle(Payload("ip", "daddr"), format_address(4, one)))
        kind = of((Mangle(Meta("pkttype"), "other"), Mangle(Payload("ip6", "hoplimit"), 255), Mangle(Ct("label"), 1)))
        return st.one_of(plain, plain, some, whole, port, address, kind)

    def wild(self):
        """Generate statements that send packets elsewhere, or have unsupported effects."""
        aim, of = self.aim, st.sampled_from
        return st.one_of(
            of(
                (NOT_UNDERSTOOD, NOT_UNDERSTOOD, nft.Queue(0), nft.Tproxy("ip", "127.0.0.1", 80), nft.FlowOffload("ft"))
            ),
            of(aim.devices).map(nft.Fwd),
            of(aim.devices).map(lambda device: nft.Dup(None, device)),
            st.just(nft.Notrack()),
        )


def _masked(key, mask):
    return key if mask == FULL_MASK else Bitwise(key, and_mask=mask)


@st.composite
def _chains(draw, name, family, parts, actions, calls=()):
    """Generate a base chain."""
    hook = draw(st.sampled_from(HOOKS[family]))
    device = draw(st.sampled_from(parts.aim.devices)) if family == "netdev" else None
    type_ = draw(st.sampled_from(("filter", "filter", "route"))) if hook == "output" else "filter"
    priority = draw(st.sampled_from(PRIORITIES))
    return Chain(name, draw(_rules(parts, actions, calls)), Hook(type_, hook, priority, "accept", device))


def _rules(parts, actions, calls):
    ends = [
        nft.ACCEPT,
        nft.DROP,
        nft.Verdict("return"),
        *(nft.Verdict(kind, one) for one in calls for kind in ("jump", "goto")),
    ]
    end = st.sampled_from(ends) | st.none() | actions
    middle = st.lists(st.one_of(parts.match(), actions, st.just(nft.Counter()), st.just(nft.Log())), max_size=1)
    return st.lists(
        st.builds(
            lambda matches, rest, last: Rule((*matches, *rest, *((last,) if last else ()))),
            st.lists(parts.match(), max_size=2), middle, end,
        ),
        max_size=4,
    ).map(tuple)  # fmt: skip


@st.composite
def _tables(draw, parts, actions, name):
    family = draw(st.sampled_from(("inet", "inet", "ip", "ip6", "netdev")))
    called = Chain("called", draw(_rules(parts, actions, ())))
    count = draw(st.integers(1, 2))
    chains = [draw(_chains(f"base{at}", family, parts, actions, ("called",))) for at in range(count)]
    sets = (
        nft.Set("changing", ("uid",), frozenset(parts.aim.uids[:2]), frozenset({"dynamic"})),
        nft.Set("devices", ("ifname",), frozenset(parts.aim.outer[:1])),
    )
    return nft.Table(family, name, (called, *chains), sets)


def harmless(policy, ports=None):
    """Generate tables that change no property of a policy: they drop, accept, count, and set foreign bits."""
    parts = Parts(policy, ports)
    actions = parts.harmless_write()
    return st.lists(_tables(parts, actions, "other"), min_size=1, max_size=1).map(tuple)


@st.composite
def anything(draw, policy, ports=None):
    """Generate tables that may break the properties of a policy, or have unsupported constructs."""
    parts = Parts(policy, ports)
    actions = st.one_of(*[parts.write()] * 4, parts.doubtful(), parts.wild())
    found = [draw(_tables(parts, actions, f"other{at}")) for at in range(draw(st.integers(1, 2)))]
    if draw(st.integers(0, 5)) == 0:
        found[0] = evolve(found[0], flags=frozenset({draw(st.sampled_from(("dormant", "unnamed")))}))
    return tuple(found)
