"""No name of a device, nft object or process that the kernel allows stops a command."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until

from . import strange_names as strange

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
POLICY, LOG = "/run/policy.toml", "/run/watch.log"
ENVIRONMENT = {"NFTPOLICY_STATE": "/run/state", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
ROUNDS = int(os.environ.get("NFTPOLICY_NAMES", "1"))
SEED = int(os.environ.get("NFTPOLICY_SEED", "1"))
COMMANDS = (
    ["apply", POLICY],
    ["status"],
    ["status", "--json"],
    ["verify", "--live"],
    ["explain", "--to", "192.0.2.1"],
    ["explain", "--to", "192.0.2.1", "--json"],
    ["snapshot", "/run/snapshot"],
    ["verify", "--snapshot", "/run/snapshot"],
    ["probe"],
    ["apply", POLICY],
)


@pytest.fixture
def node() -> Iterator[Namespace]:
    """Node with a bridge as its uplink."""
    with Namespace("names") as space:
        space.ip("link add br-wan type bridge", "link set br-wan up", "addr add 192.0.2.2/24 dev br-wan")
        space.ip("link add mesh0 type veth", "link set mesh0 up")
        space.outside(POLICY).write_text((ROOT / "rulesets/gluon-fastd.toml").read_text())
        yield space


@pytest.mark.parametrize("number", range(ROUNDS + 1))
def test_no_name_stops_a_command(node: Namespace, number: int) -> None:
    source = random.Random(SEED + number)
    devices = [*strange.DEVICES] if not number else [strange.random_device(source) for _ in range(8)]
    objects = [*strange.OBJECTS] if not number else [strange.random_object(source) for _ in range(8)]
    node.call(lambda: strange.add_devices(devices[::2], "br-wan"))
    node.call(lambda: strange.add_devices(devices[1::2]))
    node.call(lambda: strange.add_tables(objects, devices))
    for name in objects:
        node.spawn(lambda name=name: strange.hold_socket(name[:15], 1))  # type: ignore[misc]
    for words in COMMANDS:
        done = node.run([*PROGRAM, *words], check=False, env=ENVIRONMENT)
        expected = (0,) if words[0] == "apply" else (0, 1, 3)
        assert done.returncode in expected, (words, done.returncode, done.stderr)
        assert "internal error" not in done.stderr, words
        if "--json" in words:
            json.loads(done.stdout)


def test_strange_object_in_the_guard_is_removed(node: Namespace) -> None:
    def run(command: str) -> int:
        done = node.run([*PROGRAM, command, POLICY], check=False, env=ENVIRONMENT)
        assert "internal error" not in done.stderr
        return done.returncode

    assert run("apply") == 0
    names = {"chain": b'a"\xff', "counter": b"a b", "set": b"c d", "link chain": b"e f"}
    for kind, name in names.items():
        node.call(strange.add_to_guard, kind, name)
        assert run("status") == 1, kind
        assert run("apply") == 0, kind
        assert run("status") == 0, kind


def test_watch_guards_or_blocks_each_port(node: Namespace) -> None:
    """Block a port whose name nft text cannot carry, and survive each of them."""
    node.run([*PROGRAM, "apply", POLICY], env=ENVIRONMENT)
    log = node.outside(LOG)
    with log.open("wb") as file:
        watch = node.popen([*PROGRAM, "watch", "--json"], env=ENVIRONMENT, stderr=file, stdout=file)

    def logged(event: str) -> list[dict[str, object]]:
        lines = log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]

    wait_until(lambda: logged("proof"), 20, "the first proof")
    random_names = [strange.random_device(random.Random(SEED)) for _ in range(4 * ROUNDS)]
    for names in (strange.DEVICES, [name for name in dict.fromkeys(random_names) if name not in strange.DEVICES]):
        node.call(lambda names=names: strange.add_devices(names, "br-wan"))  # type: ignore[misc]
        for name in names:
            hooked = b'device "%s"' % name
            wait_until(
                lambda hooked=hooked: hooked in list_ruleset(node),
                20,
                f"a chain at {name!r} in {log.read_text()[-2000:]}",
            )
    node.run(["nft", "flush", "ruleset"])
    # Not the event: of many repairs in a short time, `watch` logs a conflict.
    wait_until(lambda: b"table inet nftpolicy {" in list_ruleset(node), 20, "a repair")
    ports = {line["port"] for line in logged("port-blocked")}
    assert ports >= {'c"d', "\udcffx", "c*", "*"}
    assert "c+d" not in ports
    assert watch.poll() is None
    watch.send_signal(signal.SIGTERM)
    assert watch.wait(limit(20)) == 0


def list_ruleset(node: Namespace) -> bytes:
    return node.call(lambda: strange.list_ruleset())
