"""Fuzz target for commands that read the kernel, in a namespace of their own: hostile names of devices, aliases, nft
objects and processes, and damaged files of the state directory. No traceback, no raw character, no status but ours.

A `nftpolicy watch` runs beside them, and has to survive and to log lines of JSON only.
"""

import atexit
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from fuzz.command_documents import COLOUR, PROGRESS, RAW, STATUSES, mutate, run_command
from fuzz.hostile_text import draw_text
from nftpolicy.cli import common
from tests.kernel import strange_names
from tests.lab.netns import Namespace, wait_until

ROOT = Path(__file__).parents[1]
POLICY, STATE, LOG = "/run/policy.toml", "/run/state", "/run/watch.log"
ROUNDS_PER_MACHINE = 50
_PR_SET_NAME = 15
REFUTING = {"status", "verify", "probe", "check"}  # commands whose exit status 1 says "no"
COMMANDS = (
    (12, ["status"]),
    (6, ["status", "--json"]),
    (6, ["history"]),
    (6, ["verify", "--live"]),
    (4, ["verify", "--live", "--json"]),
    (4, ["explain", "--to", "198.51.100.9"]),
    (4, ["explain", "--to", "198.51.100.9", "--json"]),
    (4, ["snapshot"]),
    (4, ["init", "/run/draft.toml", "--force"]),
    (4, ["check", POLICY]),
    (3, ["apply", POLICY, "--dry-run"]),
    (2, ["apply", POLICY]),
    (1, ["probe"]),
    (1, ["rollback"]),
    (1, ["recover"]),
)


class Machine:
    """A node with a policy in force, and `watch`."""

    def __init__(self):
        self.rounds = 0
        self.space = space = Namespace("fuzz")
        space.ip("link add br-wan type bridge", "link set br-wan up", "addr add 192.0.2.2/24 dev br-wan")
        space.ip("link add mesh0 type veth", "link set mesh0 up")
        space.outside(POLICY).write_text((ROOT / "rulesets/gluon-fastd.toml").read_text())
        program = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
        environment = {"NFTPOLICY_STATE": STATE, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        space.run([*program, "apply", POLICY], env=environment)
        self.log = space.outside(LOG)
        with self.log.open("wb") as file:
            self.watch = space.popen([*program, "watch", "--json"], env=environment, stdout=file, stderr=file)
        wait_until(lambda: '"proof"' in self.log.read_text(), 20, "the first proof of watch")

    def close(self):
        """Stop watch and check its log."""
        if self.watch.poll() is None:
            self.watch.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.watch.wait(20)
        status, text = self.watch.poll(), self.log.read_bytes().decode()
        self.space.close()
        assert status == 0, (status, text[-2000:])
        for line in text.splitlines():
            assert json.loads(line)["event"] and not RAW.search(line), line


_machines: list[Machine] = []
atexit.register(lambda: [machine.space.close() for machine in _machines])


def check_kernel_command(seed):
    """Check a command of a machine with hostile names."""
    if not _machines:
        _machines.append(Machine())
    machine = _machines[0]
    machine.rounds += 1
    try:
        machine.space.call(run_round, seed)
    except BaseException:
        _machines.remove(machine)
        machine.space.close()
        raise
    if machine.rounds == ROUNDS_PER_MACHINE:
        _machines.remove(machine)
        machine.close()


def run_round(seed):
    """Add hostile names to this namespace, run a command, and check its status and output."""
    choices = random.Random(seed)
    os.environ["NFTPOLICY_STATE"] = STATE
    os.environ["COLUMNS"] = str(choices.choice((40, 80, 200)))
    added = add_names(choices)
    weights, commands = zip(*COMMANDS, strict=True)
    (arguments,) = choices.choices(commands, weights)
    is_terminal = choices.random() < 0.5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:  # a socket of a process with a hostile name
        held.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, choices.choice((0, 1)))
        held.bind(("", 0))
        with suppress(OSError):  # without a mark there may be no route
            held.connect(("192.0.2.1", 9))
        status, out, err = run_command(arguments, is_terminal)
    facts = (status, arguments, added, out[-2000:], err[-2000:])
    assert status in STATUSES, facts
    assert status != common.EXIT_REFUTED or arguments[0] in REFUTING, facts
    assert "Traceback" not in err and "internal error" not in err, facts
    err = PROGRESS.sub("", err) if is_terminal else err
    for text in (out, err):
        assert not RAW.search(COLOUR.sub("", text) if is_terminal else text), facts
    if "--json" in arguments and status in (0, common.EXIT_REFUTED, common.EXIT_UNKNOWN):
        json.loads(out)


def add_names(choices):
    """Add one or two hostile names to this namespace, and return what was added."""
    return [choices.choice(KINDS)(choices) for _ in range(choices.choice((1, 1, 2)))]


def add_device(choices):
    name = strange_names.random_device(choices)
    with suppress(subprocess.CalledProcessError):  # names of peers can be in use
        strange_names.add_devices([name], choices.choice((None, None, "br-wan")))
    return "device", name


def add_alias(choices):
    text = os.fsencode(draw_text(choices).encode("utf-8", "replace").decode().replace("\0", ""))[:200] or b"x"
    with suppress(subprocess.CalledProcessError):
        subprocess.run([b"ip", b"link", b"set", b"dev", b"mesh0", b"alias", text], check=True, capture_output=True)
    return "alias", text


def add_table(choices):
    name = strange_names.random_object(choices)
    with suppress(OSError):  # of a name that is in use
        strange_names.add_tables([name], [])
    return "table", name


def name_process(choices):
    name = bytes(choices.choices(range(1, 256), k=choices.randint(1, 15)))
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)
    return "process", name


def damage_state(choices):
    """Change a file of the state directory, as a full disk or an editor can."""
    files = sorted(path for path in Path(STATE).rglob("*") if path.is_file() and path.suffix != ".lock")
    if not files:
        return "state", None
    path = choices.choice(files)
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    with suppress(ValueError, IndexError):  # damaged before, so it is not a document any more
        path.write_bytes(mutate(choices, text))
    return "state", path.name


KINDS = (add_device, add_device, add_alias, add_table, add_table, name_process, name_process, damage_state)
