"""A part of the matrix of replies: by the uplink that was asked, from the address that was asked, or lost."""

from tests.reply_matrix import cells
from tests.reply_matrix.cells import Cell, Network
from tests.reply_matrix.measure import all_cells, measure

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


def test_replies_go_inside_without_policy() -> None:
    """Positive control."""
    network = Network(cells.TWO, cells.INSIDE, False)
    outcomes = measure(network, all_cells(clients=[cells.NEIGHBOUR], moments=[cells.FIRST]))
    assert {outcome.seen for outcome in outcomes.values()} == {cells.STRAY}
    assert all(outcome.agrees for outcome in outcomes.values())
