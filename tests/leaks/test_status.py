"""`status` and `history` in each state of a machine: in force, cut off, on trial, blocked, flushed, released."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.exposure_lab import Watched
from tests.guarded_lab import ENVIRONMENT, POLICY, PROGRAM, STATE, Guarded, guarded_lab
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import wait_until

MARKING = (
    "table inet other {\nchain out {\ntype filter hook postrouting priority 15000\nmeta mark set 0x1\n}\n}\n"
    "table inet early {\nchain out {\ntype route hook output priority -160\nmeta mark set 0x1\n}\n}\n"
)


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        yield found


def status(made: Guarded) -> tuple[int, str, str]:
    """Return exit status, first line and warnings."""
    done = made.nftpolicy("status", check=False)
    return done.returncode, done.stdout.partition("\n")[0], done.stderr


def history(made: Guarded) -> list[str]:
    """Return reasons of entries and kinds of events as they happened."""
    found = json.loads(made.nftpolicy("history", "--json").stdout)
    records = [(one["number"], one["why"]) for one in found["entries"]]
    records += [(one["after"], one["kind"]) for one in found["events"]]
    return [text for _, text in sorted(records, key=lambda record: record[0])]


def test_status_in_force_names_an_uplink_that_is_down(made: Guarded) -> None:
    code, line, warnings = status(made)
    assert (code, line.startswith("gluon-fastd: in force since "), warnings) == (0, True, "")
    assert "nothing can leave" not in line
    made.lab.node.ip(f"link set {at.WAN} down")
    code, line, _ = status(made)
    assert (code, "but nothing can leave by uplink wan" in line) == (0, True)
    made.lab.wan_up()


def test_status_during_trial_and_history_of_its_end(made: Guarded) -> None:
    other = "/run/lab/other.toml"
    made.lab.node.outside(other).write_text(made.file.read_text().replace("table   = 1", "table   = 9"))
    made.nftpolicy("apply", "--confirm", "60", other)
    code, line, warnings = status(made)
    assert (code, line.startswith("gluon-fastd: on trial until 20"), "'nftpolicy confirm'" in warnings) == (
        0,
        True,
        True,
    )
    (pending,) = made.lab.node.outside(STATE).glob("*/pending.json")
    made.lab.node.call(os.kill, json.loads(pending.read_text())["deadman"]["pid"], signal.SIGTERM)  # as at the deadline
    wait_until(lambda: not pending.exists(), 20, "the way back")
    assert history(made)[-2:] == ["apply, on trial for 60 s", "confirm timed out, back to 1"]


def test_status_beside_watch_blocked_and_unblocked(made: Guarded) -> None:
    with Watched(made) as watched:
        assert "; leaks 0; dropped " in status(made)[1]
        made.lab.node.nft(MARKING)
        watched.wait_for("blocked")
        code, line, warnings = status(made)
        assert (code, "BLOCKED since " in line, "P1 wan refuted" in warnings) == (1, True, True)
        made.lab.node.nft("delete table inet other\ndelete table inet early\n")
        watched.wait_for("unblocked")
    assert history(made)[-2:] == ["blocked", "unblocked"]
    assert "watch does not run" in made.nftpolicy("status").stdout


def test_live_status_follows_flush_and_release(made: Guarded) -> None:
    words = [PROGRAM, "status", "--watch", "--interval", "0.2"]
    log = made.lab.node.outside("/run/lab/status.log")
    with log.open("w") as output:
        live = made.lab.node.popen(words, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
    wait_until(lambda: "in force since" in log.read_text(), 20, "the first status")
    made.lab.node.run(["nft", "flush", "ruleset"])
    wait_until(lambda: "NOT in force: the guard is missing" in log.read_text(), 20, "the flush")
    code, _, warnings = status(made)
    assert (code, f"packets may leave by any uplink: 'nftpolicy apply {POLICY}'" in warnings) == (1, True)
    made.release()
    wait_until(lambda: "not in force: released 20" in log.read_text(), 20, "the release")
    live.send_signal(signal.SIGINT)
    assert live.wait(limit(20)) == 0
    assert status(made)[:1] == (2,)
    assert history(made)[-1] == "released"
    made.apply()
    assert history(made)[-1] == "applied again"


def test_output_that_takes_no_text_is_one_message(made: Guarded) -> None:
    for words in ("status", "history", "status --watch"):
        full = ["sh", "-c", f"{PROGRAM} {words} >/dev/full"]
        done = made.lab.node.run(full, env=ENVIRONMENT, check=False)
        said = "nftpolicy: standard output: cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (5, said), words
    closed = f"{{ {PROGRAM} status --watch --interval 0.2; echo $? >/run/lab/code; }} | head -1"
    done = made.lab.node.run(["sh", "-c", closed], env=ENVIRONMENT, check=False)
    assert (made.lab.node.outside("/run/lab/code").read_text(), done.stderr) == ("141\n", "")
