"""Verdicts of a kernel that holds a policy beside rules like those that common programs load by iptables-nft."""

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.lab.netns import Namespace, search_path, veth

from . import stock_rules
from .test_verify import ENVIRONMENT, POLICY, PROGRAM, ROOT

pytestmark = pytest.mark.kernel

STOCK = {
    "docker": stock_rules.DOCKER,
    "libvirt": stock_rules.LIBVIRT,
    "ufw": stock_rules.UFW,
    "kube-proxy": stock_rules.KUBE_PROXY,
    "tailscale": stock_rules.TAILSCALE,
}


def report(space: Namespace) -> dict[str, object]:
    """Return what `verify --live --json` prints."""
    return json.loads(space.run([*PROGRAM, "verify", "--live", POLICY, "--json"], check=False, env=ENVIRONMENT).stdout)


def verdicts(space: Namespace) -> dict[str, str]:
    return {name: each["verdict"] for name, each in report(space)["properties"].items()}


def change(space: Namespace, rules: str) -> None:
    for line in rules.strip().splitlines():
        space.run(["sh", "-c", f"iptables-nft {line}"])


@pytest.fixture(scope="module")
def guarded() -> Iterator[Namespace]:
    """A machine with vpn-killswitch in force, which forwards for containers."""
    if not shutil.which("iptables-nft", path=search_path()):
        pytest.skip("iptables-nft is not installed")
    with Namespace("stock") as space, Namespace("stock-far") as far:
        for number, device in enumerate(("eth0", "tun0", "docker0", "virbr0")):
            veth(space, device, far, f"to-{device}")
            space.ip(f"addr add 10.{number}.0.2/24 dev {device}", f"addr add 2001:db8:{number + 1}::2/64 dev {device}")
        space.sysctl("net.ipv4.ip_forward", 1)
        space.outside(POLICY).write_text((ROOT / "rulesets" / "vpn-killswitch.toml").read_text())
        space.run([*PROGRAM, "apply", POLICY], env=ENVIRONMENT)
        yield space


@pytest.fixture
def machine(guarded: Namespace) -> Iterator[Namespace]:
    assert set(verdicts(guarded).values()) == {"proved"}, "the control: the policy alone is proved"
    yield guarded
    for table in ("filter", "nat", "mangle"):
        guarded.nft(f"delete table ip {table}\n", check=False)


@pytest.mark.parametrize("name", STOCK)
def test_safety_beside_loaded_rules_is_proved(machine: Namespace, name: str) -> None:
    change(machine, STOCK[name])
    printed = report(machine)
    assert [printed["properties"][each]["verdict"] for each in ("P1", "P2")] == ["proved", "proved"]
    assert [each for each in printed["findings"] if each["verdict"] == "refuted"] == []
    assert all(each["doubts"] for each in printed["findings"] if each["verdict"] == "unknown")


def test_loaded_target_that_marks_is_not_proved(machine: Namespace) -> None:
    change(machine, stock_rules.MARK)
    assert verdicts(machine)["P1"] in ("refuted", "unknown")


def test_switched_off_ipv6_is_proved(machine: Namespace) -> None:
    for device in ("lo", "eth0", "tun0", "docker0", "virbr0"):
        machine.sysctl(f"net/ipv6/conf/{device}/disable_ipv6", 1)
    try:
        assert set(verdicts(machine).values()) == {"proved"}
    finally:
        for device in ("lo", "eth0", "tun0", "docker0", "virbr0"):
            machine.sysctl(f"net/ipv6/conf/{device}/disable_ipv6", 0)
