"""Fields that a write into a packet changes, by the bits of the headers in RFC 791, 8200, 768, 9293, 792 and 4443."""

import pytest

from nftpolicy.model.symbolic.header_writes import written_fields
from nftpolicy.netstate.nft import RawPayload

# By family: base header, field, first and last bit.
FIELDS = {
    4: (
        *(("nh", "fragment", 48, 63), ("nh", "ttl", 64, 71), ("nh", "protocol", 72, 79)),
        *(("nh", "saddr", 96, 127), ("nh", "daddr", 128, 159)),
    ),
    6: (("nh", "protocol", 48, 55), ("nh", "ttl", 56, 63), ("nh", "saddr", 64, 191), ("nh", "daddr", 192, 319)),
}
BEHIND = (
    *(("th", "sport", 0, 15), ("th", "dport", 16, 31), ("th", "tcp.", 104, 111)),
    *(("th", "icmp.type", 0, 7), ("th", "icmp.code", 8, 15), ("th", "igmp.type", 0, 7)),
    *(("th", "icmpv6.type", 0, 7), ("th", "icmpv6.code", 8, 15), ("ll", "ether.type", 96, 111)),
)
# Bits that say where the transport header is or how long it is, and other bits beside them.
STRUCTURE = {4: ((0, 7, 16, 31, 48, 63, 72, 79, 160), (8, 15, 32, 47, 64, 71, 80, 159)),
             6: ((0, 3, 32, 55, 320), (4, 31, 56, 319))}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "field"), [(family, field) for family in (4, 6) for field in (*FIELDS[family], *BEHIND)], ids=str
)
def test_write_of_a_bit_changes_its_field(family, field):
    base, name, first, last = field
    for bit in (first, last):
        assert name in written_fields(RawPayload(base, bit, 1), family)
    assert name in written_fields(RawPayload(base, max(first - 4, 0), last - first + 8), family)
    beside = {first - 1, last + 1} - {-1}
    for bit in beside - set(STRUCTURE[family][0] if base == "nh" else ()):
        if base != "ll" or bit < 112:  # the end of the link header
            assert (name in written_fields(RawPayload(base, bit, 1), family)) is (bit == 47 and family == 6)


@pytest.mark.parametrize("family", [4, 6])
def test_write_of_a_length_moves_the_headers_behind(family):
    behind = {name for base, name, *_ in BEHIND if base == "th"} | {"fragment", "readable", "link.readable"}
    moving, other = STRUCTURE[family]
    for bit in moving:
        assert behind <= set(written_fields(RawPayload("nh", bit, 1), family))
    for bit in other:
        assert not behind - {"fragment"} & set(written_fields(RawPayload("nh", bit, 1), family))
    assert behind <= set(written_fields(RawPayload("ll", 112, 1), family))
    inner = set(written_fields(RawPayload("ih", 0, 1), family))
    assert {name for base, name, *_ in BEHIND if base == "th"} == inner
