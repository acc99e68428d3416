"""Reports of multicast membership: packets of the kernel with a mark that no rule and no socket set."""

import socket
import struct
import time

import pytest

from tests.lab import addresses as at
from tests.lab.netns import Namespace, veth, wait_until

from .two_link_node import NODE_WAN, WAN, counters

pytestmark = pytest.mark.kernel
families = pytest.mark.parametrize("family", at.FAMILIES)

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}

REPORTS = f"""
table inet reports {{
    counter reports {{ }}
    counter marked {{ }}
    counter odd {{ }}
    chain c {{
        type filter hook postrouting priority 0; policy accept;
        oifname != {WAN} accept
        KIND counter name reports
        KIND meta mark != 0 counter name marked
        KIND meta mark & 1 == 1 counter name odd
    }}
}}
"""


def _join(family: int) -> None:
    index = socket.if_nametoindex(WAN)
    with socket.socket(DOMAIN[family], socket.SOCK_DGRAM) as made:
        if family == 4:
            request = socket.inet_aton("239.1.2.3") + bytes(4) + struct.pack("=i", index)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            request = socket.inet_pton(socket.AF_INET6, "ff02::1234") + struct.pack("=i", index)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        time.sleep(0.1)


@pytest.mark.parametrize(("version", "mtu"), [("new", 1500), ("new", 1413), ("old", 1413)])
@families
def test_igmpv3_and_mldv2_reports_carry_unset_mark(
    node: Namespace, far: Namespace, family: int, version: str, mtu: int
) -> None:
    """The kernel's IGMPv3 and MLDv2 reports leave with a mark that depends on the MTU; those of older versions do not.

    sk_buff keeps `mark` and `reserved_tailroom` in one place (include/linux/skbuff.h), and these two use the latter.
    """
    veth(node, WAN, far, "eth0")
    node.ip(f"link set {WAN} mtu {mtu}")
    which = {4: "net.ipv4.conf.all.force_igmp_version", 6: "net.ipv6.conf.all.force_mld_version"}[family]
    if version == "old":
        node.sysctl(which, {4: 2, 6: 1}[family])
    node.ip(f"addr add {NODE_WAN[family]}/{ {4: 24, 6: 64}[family] } dev {WAN}")
    kind = {
        ("new", 4): "ip protocol igmp",
        ("old", 4): "ip protocol igmp",
        ("new", 6): "icmpv6 type mld2-listener-report",
        ("old", 6): "icmpv6 type mld-listener-report",
    }[version, family]
    node.nft(REPORTS.replace("KIND", kind))
    node.call(_join, family)
    found = wait_until(lambda: (now := counters(node))["reports"] and now, 3, "a report")
    if version == "old":
        assert found["marked"] == 0, "old reports carry marks too: exemptions must come before the test for the mark"
    else:
        assert found["marked"] == found["reports"], "reports are clean here: they need not be exempted before the mark"
        assert bool(found["odd"]) is bool(mtu % 2), (
            "the mark of reports comes from elsewhere here: see which bits it has"
        )
