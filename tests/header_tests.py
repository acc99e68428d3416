"""Rules that test header fields which a sender chooses, by the family of their packets."""

from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import AnonymousSet, Bitwise, Concat, Match, Meta, Payload

LENGTH = Meta("length")

# Each tuple of matches is passed by a packet that a sender can make, and not by a usual one.
HEADER_TESTS: dict[str, tuple[int, tuple[Match, ...]]] = {
    "dscp": (4, (Match(Payload("ip", "dscp"), "ef"),)),
    "dscp in a set": (4, (Match(Payload("ip", "dscp"), AnonymousSet(frozenset({"cs1", "af11"}))),)),
    "dscp by a mask": (4, (Match(Bitwise(Payload("ip", "dscp"), and_mask=0x38), 8),)),
    "ecn": (4, (Match(Payload("ip", "ecn"), "ce"),)),
    "id": (4, (Match(Payload("ip", "id"), 77),)),
    "may be fragmented": (4, (Match(Payload("ip", "frag-off"), 0),)),
    "ttl": (4, (Match(Payload("ip", "ttl"), 3),)),
    "length": (4, (Match(Payload("ip", "length"), "333-500"),)),
    "longer": (4, (Match(LENGTH, 1000, ">"),)),
    "two lengths": (4, (Match(Payload("udp", "length"), 100), Match(LENGTH, 120))),
    "concatenation": (
        4,
        (Match(Concat((Payload("ip", "dscp"), Payload("ip", "id"))), AnonymousSet(frozenset({("ef", 5)}))),),
    ),
    "tcp sequence": (4, (Match(Payload("tcp", "sequence"), 22),)),
    "tcp window": (4, (Match(Payload("tcp", "window"), 1000, "<"),)),
    "tcp flags": (4, (Match(Bitwise(Payload("tcp", "flags"), and_mask="fin,syn"), "fin,syn"),)),
    "icmp id": (4, (Match(Payload("icmp", "id"), 5),)),
    "icmp code": (4, (Match(Payload("icmp", "type"), "echo-request"), Match(Payload("icmp", "code"), 7))),
    "icmp mtu": (4, (Match(Payload("icmp", "type"), "destination-unreachable"), Match(Payload("icmp", "mtu"), 1400))),
    "igmp type": (4, (Match(Payload("igmp", "type"), "membership-query"),)),
    "dscp of IPv6": (6, (Match(Payload("ip6", "dscp"), "cs3"),)),
    "flow label": (6, (Match(Payload("ip6", "flowlabel"), 99),)),
    "hop limit": (6, (Match(Payload("ip6", "hoplimit"), 9),)),
    "length of IPv6": (6, (Match(Payload("ip6", "length"), 99),)),
    "icmpv6 sequence": (6, (Match(Payload("icmpv6", "sequence"), 7),)),
}
# No packet passes these, or no sender chooses what they read.
IMPOSSIBLE_TESTS: dict[str, tuple[Match, ...]] = {
    "contradiction": (Match(Payload("udp", "length"), 100), Match(LENGTH, 121)),
    "two protocols": (Match(Payload("tcp", "window"), 1), Match(Payload("icmp", "id"), 1)),
    "checksum": (Match(Payload("ip", "checksum"), 4),),
    "extension header": (Match(Meta("nfproto"), "ipv6"), Match(Meta("l4proto"), AnonymousSet(frozenset({0, 43, 44})))),
    "processor": (Match(Meta("cpu"), 0),),
}
ACCEPT_RULES = {name: nft.Rule((*matches, nft.ACCEPT)) for name, (_, matches) in HEADER_TESTS.items()}
