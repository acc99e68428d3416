"""Statements that only iptables has: their effect on one packet, and on sets of packets."""

import pytest

from nftpolicy.model.branching import explore_branches
from nftpolicy.model.nft.chains import Ruleset, evaluate_chain
from nftpolicy.model.nft.hooks import needs_conntrack
from nftpolicy.model.packet import parse_address
from nftpolicy.model.packet_view import PacketView
from nftpolicy.model.symbolic.box import points
from nftpolicy.model.symbolic.box_index import BoxIndex
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.state import NetState
from nftpolicy.proof.context import ProofContext

UID_5 = nft.Match(nft.Meta("skuid"), 5)
GID_7 = nft.Match(nft.Meta("skgid"), 7)
RECENT = nft.UnmodelledMatch("xt match recent")
MARK, CT_MARK = nft.Meta("mark"), nft.Ct("mark")


def table(*statements, policy="accept"):
    chain = nft.Chain("c", (nft.Rule(statements),), nft.Hook("filter", "output", 0, policy))
    return nft.Table("ip", "t", (chain,))


def outcomes(made, **fields):
    """Return the verdicts and marks that are possible for one packet."""
    view = {"family": 4, "source": 1, "destination": parse_address("192.0.2.1"), "protocol": 17, "sport": 1, "dport": 9}

    def run(choices):
        packet = PacketView(**view, **fields)
        return evaluate_chain(Ruleset((made,)), made, made.chains[0], packet, choices), packet.mark

    return set(explore_branches(run).results)


def accepted(made, box):
    """Return a part of the box that the table accepts, or None; and the unsupported constructs."""
    context = ProofContext(NetState((made,)))
    space = context.space(4)
    found = context.chain_transfer(4).find_accepted([(made, made.chains[0])], {**space.family_box(), **box}, BoxIndex())
    return found, [text for text in space.unsupported.values() if not text.startswith("headers that are")]


@pytest.mark.parametrize(
    ("matches", "uid", "gid", "is_dropped"),
    [
        ((UID_5,), 5, 0, False),
        ((UID_5,), 6, 0, True),
        ((UID_5,), None, None, True),
        ((UID_5, GID_7), 5, 7, False),
        ((UID_5, GID_7), 5, 6, True),
        ((UID_5, GID_7), 6, 7, True),
        ((UID_5, GID_7), None, None, True),
    ],
)
def test_unless_of_packet_agrees_with_its_regions(matches, uid, gid, is_dropped):
    made = table(nft.Unless(matches), nft.DROP)
    assert outcomes(made, uid=uid, gid=gid) == {("drop" if is_dropped else "accept", 0)}
    box = {"socket": points(0)} if uid is None else {"socket": points(1), "uid": points(uid), "gid": points(gid)}
    found, unsupported = accepted(made, box)
    assert (found is None) is is_dropped
    assert not unsupported


def test_unless_after_write_reads_the_new_mark():
    marked = nft.Match(MARK, 1)
    made = table(nft.Mangle(MARK, 1), nft.Unless((marked,)), nft.DROP)
    assert outcomes(made, mark=0) == {("accept", 1)}
    assert accepted(made, {})[0] is not None
    made = table(nft.Mangle(MARK, 2), nft.Unless((marked,)), nft.DROP)
    assert outcomes(made, mark=1) == {("drop", 2)}
    assert accepted(made, {})[0] is None


def test_unless_of_undecided_match_branches():
    made = table(nft.Unless((nft.Match(nft.Rt("mtu"), 5),)), nft.DROP)
    assert outcomes(made) == {("drop", 0), ("accept", 0)}
    found, unsupported = accepted(made, {})
    assert found is not None
    assert "rt mtu" in unsupported[0]


def test_unmodelled_match_branches_and_has_its_name():
    made = table(RECENT, nft.DROP)
    assert outcomes(made) == {("drop", 0), ("accept", 0)}
    found, unsupported = accepted(made, {})
    assert found is not None
    assert unsupported == ["ip t: <xt match recent>"]
    assert accepted(table(RECENT, nft.ACCEPT, policy="drop"), {})[0] is not None


def test_neutral_target_changes_nothing():
    made = table(nft.NeutralTarget("TCPMSS"), nft.DROP)
    assert outcomes(made) == {("drop", 0)}
    assert accepted(made, {}) == (None, [])


def test_unmodelled_match_needs_conntrack_where_its_module_does():
    assert needs_conntrack((table(RECENT),), 4) is False
    assert needs_conntrack((table(nft.NeutralTarget("CT", True)),), 4) is True
    assert needs_conntrack((table(nft.UnmodelledMatch("xt match connlimit", True)),), 4) is True
    assert needs_conntrack((table(nft.Unless((nft.Match(nft.Ct("state"), "new", "in"),))),), 4) is True


@pytest.mark.parametrize("target", [MARK, CT_MARK])
def test_unless_of_devices_and_masks_is_in_the_header_space(target):
    device = nft.Unless((nft.Match(nft.Meta("oifname"), "wan7"),))
    masked = nft.Unless((nft.Match(nft.Bitwise(target, 0x30), 0x10),))
    made = table(device, masked, nft.DROP)
    scan = ProofContext(NetState((made,))).ruleset_scan
    assert "wan7" in scan.devices
    assert 0x30 in scan.masks


def test_display_text_of_xt_statements_is_no_python():
    rule = nft.Rule((RECENT, nft.Unless((UID_5, GID_7)), nft.Mangle(MARK, nft.UnknownExpression("socket's")),
                     nft.NeutralTarget("LED")))  # fmt: skip
    expected = "<xt match recent> <unless meta skuid 5 and meta skgid 7> meta mark set <socket's> <xt target LED>"
    assert nft_text.display_text(rule) == expected


def restored(packet_mask, flow_mask, op="|"):
    return nft.Mangle(MARK, nft.Binary(op, nft.Bitwise(MARK, packet_mask), nft.Bitwise(CT_MARK, flow_mask)))


@pytest.mark.parametrize(
    ("write", "mask", "value"),
    [
        (restored(0xFFFFFF00, 0xF0), 0x0F, 1),  # bits that both masks remove
        (restored(0xFFFFFF00, 0xF0), 0xF0, 0x20),  # bits of the connection
        (restored(0xFFFFFF00, 0xF0), 0xF00, 0x200),  # bits of the packet, which has none
        (restored(0xFFFFFFFF, 0xF0), 0xF0, 0x20),  # bits of both
        (restored(0xFFFFFF00, 0xF0, "^"), 0xF00, 0x200),
    ],
)
def test_write_of_masked_marks_follows_each_group(write, mask, value):
    made = table(write, nft.Match(nft.Bitwise(MARK, mask), value, "!="), nft.DROP)
    space = ProofContext(NetState((made,))).space(4)
    unmarked = {name: points(0) for name in space.max_values if name.startswith("mark:")}
    found, _ = accepted(made, {"ct.state": points(0), **unmarked})
    verdicts = [verdict for flow in range(0x400) for verdict, _ in outcomes(made, mark=0, ct_mark=flow)]
    assert (found is not None) is ("accept" in verdicts)
