"""Replies of servers over SCTP, which only a stock kernel has: the cells of the matrix of replies."""

import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

from tests.reply_matrix import cells
from tests.reply_matrix.cells import Network

_MOMENTS = (cells.FIRST, cells.FLUSHED)  # the policy answers no SCTP, so that no connection grows old


def sctp() -> str:
    """Measure the replies of SCTP servers in each network, with a policy and without one.

    Where a reply leaves, the model has to predict the same; a handshake that is dropped has no later reply.
    """
    from tests.reply_matrix.measure import all_cells, measure  # it needs the package, which a test installs

    subprocess.run(["modprobe", "sctp"], check=True)
    chosen = all_cells(protocols=[cells.SCTP], moments=_MOMENTS)
    assert chosen, "the kernel has no SCTP"
    networks = (Network(*each) for each in product(cells.UPLINKS, cells.DEFAULTS, (True, False)))
    seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    faults = []
    for network in networks:
        for cell, outcome in measure(network, chosen).items():
            seen[network.has_policy][outcome.seen] += 1
            is_stray = network.has_policy and outcome.seen == cells.STRAY
            if is_stray or (outcome.seen != cells.NOWHERE and not outcome.agrees):
                faults.append(f"{network}, {cell}: {outcome}")
    control = seen[False]
    assert not faults, f"{len(faults)} faults: " + "\n".join(faults)
    assert control[cells.ANSWERED] and control[cells.STRAY], f"inconclusive: without a policy {dict(control)}"
    return (
        f"0 of {sum(seen[True].values())} replies left by another device or address, {seen[True][cells.ANSWERED]} were "
        f"answered; without a policy {control[cells.STRAY]} and {control[cells.ANSWERED]}, all as the model predicts"
    )


TESTS: Mapping[str, Callable[[], str]] = {"sctp": sctp}
