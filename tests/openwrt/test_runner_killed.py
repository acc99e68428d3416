"""E5: the runner killed at every step of a change, under a flood. The guard holds, and the next run completes it.

Odd steps are killed before they are done and even ones after; with NFTPOLICY_CRASHES=all each step meets both.
"""

import os
from collections.abc import Iterator

import pytest

from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from tests.guarded_lab import gluon, wan_routes_in_main
from tests.lab.daemons import tool
from tests.lab.topology import Lab, missing
from tests.leaks.test_race_windows import FLOOD, flooding

from .router import STATE, Router, right

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kernel,
    pytest.mark.usefixtures("able"),
    pytest.mark.skipif(bool(missing()), reason=f"a lab needs {', '.join(missing())}"),
]

ALL = os.environ.get("NFTPOLICY_CRASHES") == "all"
MOMENTS = ("after", "before")
LEAST = 6  # steps of a change: programs that are run to change something
COUNT, WHEN = "/run/count", "/run/when"
# A program that kills the runner, and the shell that called it, at the step that WHEN names: "3 before", "3 after".
KILLER = f"""case " $* " in
*" -c "* | *" list "* | *" show "* | *" monitor "*) exec REAL "$@" ;;
esac
read -r count <{COUNT}
count=$((count + 1))
echo $count >{COUNT}
when=$(cat {WHEN})
[ "$when" != "$count before" ] || kill -9 $(readlink {STATE}/lock) $PPID
[ "$when" != "$count before" ] || exit 1
REAL "$@"
status=$?
[ "$when" != "$count after" ] || kill -9 $(readlink {STATE}/lock) $PPID
exit $status"""


@pytest.fixture(scope="module")
def field() -> Iterator[tuple[Lab, Router, list[Policy]]]:
    with Lab(groups={"gluon-mesh-vpn": 800}) as lab:
        wan_routes_in_main(lab)
        text = gluon(lab)
        changes = {"group  = 800": "group  = 801", "table   = 1": "table   = 7", '"0x1/0x1"': '"0x1/0x3"'}
        other = text
        for old, new in changes.items():
            assert other.count(old) == 1
            other = other.replace(old, new)
        policies = [load(one.encode())[0] for one in (text, other)]
        # The IP layer alone: what the link layer stops besides would hide a gap in it.
        router = Router(lab.node, policies[0], link_guard=False)
        for name in ("nft", "ip"):
            router.program(name, KILLER.replace("REAL", str(tool(name))))
        yield lab, router, policies


def run(router: Router, when: str = "never") -> int:
    """Apply, killed or not; return the number of steps."""
    router.space.outside(COUNT).write_text("0\n")
    router.space.outside(WHEN).write_text(f"{when}\n")
    done = router.nftpolicy("apply", check=False)
    assert (done.returncode == 0) == (when == "never") or int(when.split()[0]) > steps(router), done.stderr
    return steps(router)


def steps(router: Router) -> int:
    return int(router.space.outside(COUNT).read_text())


def leaked(lab: Lab) -> int:
    assert lab.wan.dropped == 0, "inconclusive: the sniffer lost frames"
    return sum(FLOOD in frame.payload for frame in lab.wan.frames())


def test_E5_runner_killed_at_every_step_leaks_nothing(field: tuple[Lab, Router, list[Policy]]) -> None:
    lab, router, policies = field
    run(router)
    turn, step, killed = 0, 0, 0
    with flooding(lab):
        lab.wan.wait_for(lambda _: False, 0.1)
        lab.wan.drain()
        while True:
            step += 1
            for moment in MOMENTS if ALL else MOMENTS[step % 2 :][:1]:
                turn += 1
                router.write(policies[turn % 2], link_guard=False)
                met = run(router, f"{step} {moment}")
                killed += met >= step
                assert leaked(lab) == 0, (step, moment)
                run(router)
                assert right(router)
                assert leaked(lab) == 0, (step, moment)
            if met < step:
                break
        assert killed >= LEAST
        router.nftpolicy("release")
        assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 2), "inconclusive: there was no flood"


def test_E5_runner_killed_at_first_apply_is_recovered(field: tuple[Lab, Router, list[Policy]]) -> None:
    """The guard is the first step that changes the kernel, so it stands at each later kill."""
    lab, router, policies = field
    router.write(policies[0], link_guard=False)
    router.nftpolicy("release")
    for step in range(1, LEAST):
        run(router, f"{step} after")
        assert "table inet nftpolicy\n" in lab.node.run(["nft", "list", "tables"]).stdout, step
        run(router)
        assert right(router)
        router.nftpolicy("release")
