"""Facts of this machine: what counts as in use by other programs."""

from nftpolicy.netstate import nft
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY, IpRule, Route
from nftpolicy.runtime import machine_facts

OTHER = 3


def route(table: int, device: str | None, destination: str = "default") -> Route:
    return Route(4, table, destination, device=device, protocol=OTHER)


def test_tables_of_uplink_routes_alone_are_free() -> None:
    rules = [IpRule(4, 5, table=60, protocol=OTHER), IpRule(4, 510, table=51, protocol=RTPROT_NFTPOLICY)]
    routes = [route(254, "eth0"), route(51, "eth0"), route(52, "eth0", "10.0.0.0/8"), route(53, "wg0", "10.0.0.0/8")]
    assert machine_facts._tables_in_use(rules, routes) == {53, 60}


def test_marks_of_rules_and_of_foreign_tables_are_in_use() -> None:
    mark, others = nft.Meta("mark"), nft.Rule((nft.Match(nft.Meta("l4proto"), "==", 0x40),))
    writer = nft.Rule((nft.Match(mark, "==", 0x100), nft.Match(mark, "!=", 0xFFFF0FFF)))
    tables = (nft.Table("inet", "other", chains=(nft.Chain("out", rules=(writer, others)),)),)
    rules = [
        IpRule(4, 5, mark=0x2, mask=0xFFFFFFFF, protocol=OTHER),
        IpRule(4, 6, mark=0, mask=0xF0000, protocol=OTHER),
        IpRule(4, 510, mark=0x800000, mask=0x800000, protocol=RTPROT_NFTPOLICY),
    ]
    assert machine_facts._marks_in_use(tables, rules) == 0x2 | 0xF0000 | 0x100 | 0xF000
