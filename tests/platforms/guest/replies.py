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
    assert not faults, f"{len(faults)} faults: " + "\n".join(faults)
    left = {has_policy: (each[cells.ANSWERED], each[cells.STRAY]) for has_policy, each in seen.items()}
    assert left[False][0], f"inconclusive: without a policy {dict(seen[False])}"
    return (
        f"{sum(left[True])} of {sum(seen[True].values())} replies left; without a policy {left[False][0]} by the "
        f"device of the request and {left[False][1]} by another one, all as the model predicts"
    )


TESTS: Mapping[str, Callable[[], str]] = {"sctp": sctp}
