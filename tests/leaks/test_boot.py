"""E3, E4: the guard's files, loaded by nft before the network exists; a stop keeps the guard."""

import re
from collections.abc import Iterator

import pytest

from tests.guarded_lab import (
    POLICY,
    Guarded,
    guarded_lab,
    no_wan_routes_in_main,
    run_probes,
    wan_routes_in_main,
)
from tests.lab.topology import Lab

GUARD, BLOCK = "/run/lab/guard.nft", "/run/lab/guard-block.nft"
LINK, DEVICE = "/run/lab/guard-link.nft", "/run/lab/guard-link-br-wan.nft"


@pytest.fixture(scope="module")
def released() -> Iterator[Guarded]:
    """The files of the shipped policy in a node where it is not in force."""
    with guarded_lab() as made:
        made.release()
        made.nftpolicy("guard", "--no-load", "--to", GUARD, POLICY)
        yield made


@pytest.fixture(autouse=True)
def _nothing_in_force(released: Guarded) -> Iterator[None]:
    yield
    released.lab.node.nft("flush ruleset\n")


def start(lab: Lab, *files: str) -> None:
    """Start the machine: first the files, then the links, addresses and routes."""
    lab.wan_down()
    for file in files:
        lab.node.run(["nft", "-f", file])
    lab.wan_up()
    wan_routes_in_main(lab)


def test_boot_without_guard_files_leaks(released: Guarded) -> None:
    start(released.lab)
    assert run_probes(released.lab).unmarked()
    no_wan_routes_in_main(released.lab)


@pytest.mark.parametrize(
    "files",
    [(BLOCK, GUARD, LINK, DEVICE), (GUARD, GUARD, LINK, LINK, DEVICE, DEVICE, LINK)],
    ids=["as at boot", "twice"],
)
def test_boot_with_guard_files_leaks_nothing(released: Guarded, files: tuple[str, ...]) -> None:
    start(released.lab, *files)
    found = run_probes(released.lab)
    assert (found.unmarked(), found.unexplained()) == ([], [])
    assert any(sent.probe.marked for sent in found.wan), "the control: what may leave does"
    no_wan_routes_in_main(released.lab)


def test_boot_without_link_guard_leaks_frames_only(released: Guarded) -> None:
    """Reason why udev loads the file of a device that appears."""
    start(released.lab, GUARD, LINK)
    found = run_probes(released.lab).unmarked()
    assert found
    assert all(re.search("packet|frame", one) for one in found), found
    no_wan_routes_in_main(released.lab)


def test_device_file_needs_the_link_guard(released: Guarded) -> None:
    """udev loads it whenever a device appears, also after a release."""
    refused = released.lab.node.run(["nft", "-f", DEVICE], check=False)
    assert refused.returncode
    assert released.lab.node.run(["nft", "list", "tables"]).stdout == ""


def test_boot_with_block_stops_marked_packets(released: Guarded) -> None:
    start(released.lab, LINK, DEVICE)
    released.lab.node.run(["nft", "-f", BLOCK])  # only now: it stops questions for routers too
    assert not [sent for sent in run_probes(released.lab).wan if "packet" not in str(sent.probe)]
    no_wan_routes_in_main(released.lab)


def test_apply_after_boot_keeps_counters(released: Guarded) -> None:
    start(released.lab, GUARD, LINK, DEVICE)
    run_probes(released.lab)
    before = released.counters()
    assert before["inet/wan.dropped"] > 0
    released.apply()
    after = released.counters()
    assert all(after[name] >= count for name, count in before.items())
    said = released.nftpolicy("guard", "--to", GUARD, POLICY).stdout
    assert "is in the kernel already" in said
    no_wan_routes_in_main(released.lab)
    released.release()
