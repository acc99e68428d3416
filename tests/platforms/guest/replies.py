"""Replies of servers over SCTP, which only a stock kernel has: the cells of the matrix of replies."""

import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

from tests.reply_matrix import cells
from tests.reply_matrix.cells import Network
from tests.reply_matrix.page import faults


def sctp() -> str:
    """Measure the replies of SCTP servers in each network, with a policy and without one."""
    from tests.reply_matrix.measure import all_cells, measure  # it needs the package, which a test installs

    subprocess.run(["modprobe", "sctp"], check=True)
    chosen = all_cells(protocols=[cells.SCTP])
    assert chosen, "the kernel has no SCTP"
    networks = (Network(*each) for each in product(cells.UPLINKS, cells.DEFAULTS, (True, False)))
    matrix = {network: measure(network, chosen) for network in networks}
    found = list(faults(matrix))
    assert not found, "\n".join(found)
    seen = {
        has_policy: Counter(outcome.seen for network, each in matrix.items() if network.has_policy == has_policy
                            for outcome in each.values())
        for has_policy in (True, False)
    }  # fmt: skip
    control = seen[False]
    assert control[cells.ANSWERED] and control[cells.STRAY], f"inconclusive: without a policy {dict(control)}"
    count = sum(map(len, matrix.values()))
    return (
        f"0 of {count // 2} replies by another device or address, {seen[True][cells.ANSWERED]} answered; without a "
        f"policy {control[cells.STRAY]} and {control[cells.ANSWERED]}; each of {count} as the model predicts"
    )


TESTS: Mapping[str, Callable[[], str]] = {"sctp": sctp}
