"""Upgrade: the objects of version 0.1 in the kernel become today's by `apply`, and no packet leaks or is lost."""

import re
from collections.abc import Iterator

import pytest

from tests.guarded_lab import SERVICE_GID, Guarded, guarded_lab, wan_routes_in_main, watching
from tests.leaks.test_race_windows import FLOOD, REFUSALS, flooding

ALLOWED = b"a service's flood"
# Today's name -> name in version 0.1, as a pattern and its replacement in the listing of nft.
NAMES_OF_0_1 = [
    (r"\bunnamed-device\b", "unknown-device"),
    (r"\.not-local\b", ".not-mine"),
    (r"\.mark-owner\b", ".identity"),
    (r"\b(chain|jump) dns\b", r"\1 names"),
]


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A guarded lab with the WAN's routes in main too, so that all that is not stopped leaves by it."""
    with guarded_lab() as lab:
        wan_routes_in_main(lab.lab)
        lab.apply()
        yield lab


def load_names_of_0_1(guarded: Guarded) -> None:
    """Exchange our tables for those of version 0.1, in one transaction."""
    text = ""
    for family in ("inet", "netdev"):
        listing = guarded.lab.node.run(["nft", "list", "table", family, "nftpolicy"]).stdout
        for pattern, name in NAMES_OF_0_1:
            listing = re.sub(pattern, name, listing)
        text += f"delete table {family} nftpolicy\n{listing}"
    guarded.lab.node.nft(text)


def test_E1_upgrade_from_0_1_leaks_and_loses_no_packet(guarded: Guarded) -> None:
    load_names_of_0_1(guarded)
    assert {"inet/unknown-device", "inet/wan.not-mine"} <= guarded.counters().keys()
    lab = guarded.lab
    with watching(lab) as watch, flooding(lab):
        lab.wan.drain()
        assert "applied in" in guarded.apply()
        assert [frame for frame in lab.wan.frames() if FLOOD in frame.payload] == []
        assert watch.unmarked == 0
        with guarded.off():
            assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 2), "inconclusive: there was no flood"
    load_names_of_0_1(guarded)
    with flooding(lab, mark=1, gid=SERVICE_GID, payload=ALLOWED):
        assert lab.wan.wait_for(lambda frame: ALLOWED in frame.payload, 2), "inconclusive: nothing is allowed"
        assert "applied in" in guarded.apply()
        refused = lab.node.outside(REFUSALS).read_text()
    assert refused == ""
    assert {"inet/unnamed-device", "inet/wan.not-local"} <= guarded.counters().keys()
    assert "in force already" in guarded.apply()
