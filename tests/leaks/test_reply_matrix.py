"""A part of the matrix of replies: by the uplink that was asked, from the address that was asked, or lost."""

from tests.reply_matrix import cells
from tests.reply_matrix.cells import Cell, Network
from tests.reply_matrix.measure import all_cells, measure
from tests.reply_matrix.reply_network import ReplyNetwork

FAR = {4: "9.9.9.9", 6: "2001:db8:99::9"}
ALWAYS_LOST = (cells.IDLE, cells.FLUSHED)  # nothing tells that it is a reply


def expected(cell: Cell) -> str:
    if cell.protocol == cells.PING:
        return cells.ANSWERED
    leads_inside = cell.protocol == cells.UDP_WILDCARD and cell.client == cells.BEYOND
    return cells.NOWHERE if cell.moment in ALWAYS_LOST or leads_inside else cells.ANSWERED


def test_each_reply_leaves_by_the_uplink_of_its_request() -> None:
    outcomes = measure(Network(cells.TWO, cells.INSIDE, True), all_cells())
    assert {cell: outcome for cell, outcome in outcomes.items() if not outcome.agrees} == {}
    assert {cell: outcome for cell, outcome in outcomes.items() if outcome.seen != expected(cell)} == {}


def test_dead_uplink_does_not_stop_replies_of_another() -> None:
    """Beyond the gateway, too: without routes, the first uplink takes no reply from the second."""
    wanted = all_cells(protocols=[cells.UDP_WILDCARD, cells.UDP_BOUND], moments=[cells.FIRST])
    outcomes = measure(Network(cells.TWO, cells.NONE, True, first_is_dead=True), wanted)
    assert {cell: (each.seen, each.predicted) for cell, each in outcomes.items()} == dict.fromkeys(
        wanted, (cells.ANSWERED, cells.ANSWERED)
    )


def test_dead_uplink_of_two_refuses_marked_packets() -> None:
    """With a default route inside: the rule behind the mark is the error. Control: without a mark, they go inside."""
    with ReplyNetwork(Network(cells.TWO, cells.INSIDE, True, first_is_dead=True)) as made:

        def way(family: int, mark: str) -> str:
            done = made.node.run(["ip", "route", "get", FAR[family], "mark", mark], check=False)
            return done.stdout + done.stderr

        for family in cells.FAMILIES:
            assert "Network is unreachable" in way(family, "1")
            assert "dev tun9" in way(family, "0"), "the control"


def test_replies_go_inside_without_policy() -> None:
    """Positive control."""
    network = Network(cells.TWO, cells.INSIDE, False)
    outcomes = measure(network, all_cells(clients=[cells.NEIGHBOUR], moments=[cells.FIRST]))
    assert {outcome.seen for outcome in outcomes.values()} == {cells.STRAY}
    assert all(outcome.agrees for outcome in outcomes.values())
