"""The package from its installation to its removal; the demo; the leak tests."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.lab.limits import limit

from ..early_sender import ATTEMPTS, GUARDED, MARKED, REMOVED, send_frame

POLICY = "/etc/nftpolicy/policy.toml"
MARK, GID = 0x1110, 851  # of rulesets/vpn-killswitch.toml
GATEWAY = "192.0.2.2"
UNITS = ("nftpolicy-guard", "nftpolicy", "nftpolicy-watch", "nftpolicy-resolver@hotspot")
# Their controls are in the same lab. The demo asks for names, and a closed port is a matter of waiting.
LEAK_TESTS = (
    "tests/leaks/test_main_job.py",
    "tests/leaks/test_local_bypass.py",
    "tests/kernel/test_hook_facts.py",
    "tests/kernel/test_bypass_facts.py::test_cgroup_program_that_marks_leaks_and_is_unknown",
)
LEFT_OUT = (
    "names_from",
    "is_unreachable_from_outside",
    "not_answered",
    "same_ports",
    "not_forwarded",
    "bound_to_mesh",
)
LEAK_SECONDS = 1800


def run(command: str, seconds: float = 60, check: bool = True) -> str:
    """Run a shell command and return what it printed; AssertionError with it if it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=limit(seconds))
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, f"{command}: exit status {done.returncode}: {output[-1500:].strip()}"
    return output


def install_package() -> str:
    """Install the package, as a user of the distribution does."""
    run("dpkg -i nftpolicy.deb")
    return run("nftpolicy --version").strip()


def demo() -> str:
    """Run the demo, which has its own control."""
    done = subprocess.run(["nftpolicy", "demo", "--json", "--rounds", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stdout[-1000:]} {done.stderr[-1000:]}"
    states = json.loads(done.stdout)["states"]
    guarded = [state for state in states if state["name"] != "no policy"]
    left, sent = (sum(state[key] for state in guarded) for key in ("unmarked_on_wan", "probes"))
    control = next(state for state in states if state["name"] == "no policy")
    return (
        f"{left} unmarked of {sent} packets left; without a policy {control['unmarked_on_wan']} of {control['probes']}"
    )


def leaks() -> str:
    """Run leak tests of the project with the installed program; each test is a line on standard error."""
    words = [sys.executable, "-m", "pytest", "-v", "--durations=10", "-p", "no:cacheprovider", "-W", "default"]
    words += ["-k", " and ".join(f"not {name}" for name in LEFT_OUT), *LEAK_TESTS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        timer = threading.Timer(LEAK_SECONDS, process.terminate)
        timer.start()
        lines = []
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line)
        timer.cancel()
    assert process.returncode == 0, f"{lines[-1].strip()}\n{''.join(lines)[-3500:]}"
    return re.sub(r" in .*|=", "", lines[-1]).strip()


def enable() -> str:
    """Install a policy with its units, for the next start."""
    Path(POLICY).parent.mkdir(exist_ok=True)
    text = Path("rulesets/vpn-killswitch.toml").read_text()
    Path(POLICY).write_text(re.sub(r"^lease .*", 'sources = ["networkd"]', text, flags=re.MULTILINE))
    run(f"nftpolicy netconfig {POLICY} --for networkd --to /")
    run(f"nftpolicy install {POLICY} --enable")
    return f"{run('systemctl is-enabled ' + ' '.join(UNITS)).split().count('enabled')} units enabled"


def boot() -> str:
    """Check the machine after a start with the policy: the guard was first, the state is as expected, marks pass."""
    end = time.monotonic() + limit(60)
    while (status := subprocess.run(["nftpolicy", "status"], capture_output=True, text=True)).returncode:
        assert time.monotonic() < end, f"status: {status.stdout[-1500:]}{status.stderr}{_units()}"
        time.sleep(2)
    proof = run("nftpolicy verify --live", check=False)
    assert "proved" in proof.splitlines()[0].lower(), f"verify: {proof[:1500]}"
    for unit in UNITS:
        assert run(f"systemctl is-active {unit}", check=False).strip() == "active", f"{unit}: {_units()}"
    group = run("cat /proc/$(systemctl show -P MainPID nftpolicy-watch)/autogroup").split()
    assert group[1:] == ["nice", "-10"], f"the session of watch has the priority {group}"
    guard, network = _moment("nftpolicy-guard", "ActiveEnter"), _moment("systemd-networkd", "ExecMainStart")
    assert 0 < guard < network, f"the guard at {guard} us, networkd at {network} us"
    assert _send(MARKED, MARK, GID) > 0
    for _ in range(10):
        with contextlib.suppress(OSError):
            send_frame(GUARDED)
    time.sleep(limit(0.5))
    run("systemctl stop early-sender")
    attempts = int(Path(ATTEMPTS).read_text())
    assert attempts > 10, f"inconclusive: {attempts} attempts"
    return f"of {attempts * 2 // 3} unmarked packets"


def remove() -> str:
    """Back out, purge the package, and show that nothing is left and the uplink is open."""
    run("nftpolicy uninstall && nftpolicy release")
    run("dpkg --purge nftpolicy")
    left = run("nft list tables; { ip -N rule; ip -N -6 rule; } | grep 'proto 78'", check=False).strip()
    left += run("ls -d /etc/nftpolicy /var/lib/nftpolicy /etc/systemd/system/nftpolicy* 2>/dev/null", check=False)
    found = run("find /etc /usr /var -name '*nftpolicy*' 2>/dev/null", check=False)
    assert not left + found, left + found
    for _ in range(10):
        send_frame(REMOVED)
    return "no file, unit, table or rule"


def _send(payload: bytes, mark: int, gid: int) -> int:
    """Send datagrams as a member of a group; return how many the kernel took."""
    process = os.fork()
    if process == 0:
        taken = 0
        os.setgroups([])
        os.setresgid(gid, gid, gid)  # a socket keeps the group that opened it; capabilities stay
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            for _ in range(10):
                try:
                    taken += made.sendto(payload, (GATEWAY, 9)) > 0
                except OSError as error:
                    print(error, file=sys.stderr)
        os._exit(taken)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _moment(unit: str, event: str) -> int:
    """Return when something happened to a unit, in microseconds since the start of the kernel."""
    return int(run(f"systemctl show {unit} -p {event}TimestampMonotonic --value"))


def _units() -> str:
    return run(f"systemctl --no-pager status {' '.join(UNITS)} | tail -40", check=False)


TESTS: Mapping[str, Callable[[], str]] = {
    "package": install_package,
    "demo": demo,
    "leaks": leaks,
    "install": enable,
    "boot": boot,
    "removal": remove,
}
