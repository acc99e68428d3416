"""Duration and size of the exposure after foreign damage to the policy, under `nftpolicy watch` and a flood."""

import time

from tests.exposure_lab import DAMAGES, Exposure, Watched, hurt
from tests.guarded_lab import guarded_lab, wan_routes_in_main
from tests.leaks.test_race_windows import FLOOD, flooding

from .figures import Report, Series, say

ROUNDS = 50
_APART = 1.3  # seconds; faster changes are reported as a conflict with another program


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    with guarded_lab() as made:
        wan_routes_in_main(made.lab)
        with Watched(made, "--leave-routes") as watched, flooding(made.lab):
            for name in DAMAGES:
                say(f"exposure: {name}")
                found = [_once(watched, name) for _ in range(rounds or ROUNDS)]
                report.series += [
                    Series(f"exposure: {name}", "until it is back", "ms", [one.ms for one in found]),
                    Series(f"exposure: {name}", "packets that left", "packets", [float(one.leaked) for one in found]),
                ]


def _once(watched: Watched, name: str) -> Exposure:
    time.sleep(_APART)
    return hurt(watched, name, FLOOD)
