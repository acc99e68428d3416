"""What `check` warns of: certain from the policy alone or from what is installed, and nothing on good policies."""

import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.policy.errors import shown
from nftpolicy.policy.lint import warnings
from nftpolicy.policy.load import load
from nftpolicy.policy.mark import FULL, Mark, parse
from nftpolicy.policy.others import OTHERS, SIGNS, clashing
from tests.unit.test_faults import GOOD

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
GLUON = (ROOT / "rulesets/gluon-fastd.toml").read_text()
GOOD_ONES = [*sorted((ROOT / "rulesets").glob("*.toml")), *sorted((ROOT / "tests/golden").glob("*/policy.toml"))]
TOLD = {"04-kernel-service": ["service.wireguard.kernel"]}  # this one is about a kernel's socket on any port

# What the good policy says -> what another says instead, the key, and words of the warning.
CASES = [
    ('servers = ["192.0.2.53"]', 'servers = ["127.0.0.1"]', "uplink.wan.resolver.servers[0]", "this machine's own"),
    ('servers = ["192.0.2.53"]', 'servers = ["fe80::1%eth9"]', "uplink.wan.resolver.servers[0]", "no device of uplink"),
    ('lease = "/run/lte.dns"', 'lease = "/etc/resolv.conf"', "uplink.lte.resolver.lease", "of the whole machine"),
    ('lease = "/run/lte.dns"', 'sources = ["dhclient", "ra"]', "uplink.lte.resolver.sources[1]", "no router can be asked"),
    ('uplink = "lte"\nuser = 900', 'uplink = "wan"\nuser = 900', "uplink.lte.resolver", "nobody may ask its resolver"),
    ('["bat0", "mesh*"]\n', "[]\n", None, None),
    ('sport = ["udp/51820"]\n', "", "service.wg.kernel", "what this machine's own programs send through the tunnel is"),
    ('sport = ["udp/51820"]\n', "sport = []\n", "service.wg.kernel", 'such as sport = ["udp/51820"]'),
    ('kernel = true\nsport = ["udp/51820"]\n', "kernel = false\nuser = 901\n", None, None),
]  # fmt: skip


def found(text, here=frozenset()):
    policy, _ = load(text.encode())
    return [(shown(path), message) for path, message in warnings(policy, here)]


@pytest.mark.parametrize("file", GOOD_ONES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_false_alarm(file):
    told = found(file.read_text())
    assert [key for key, _ in told] == TOLD.get(file.parent.name, [])


def test_the_good_policy_is_good():
    assert found(GOOD) == []


@pytest.mark.parametrize(("old", "new", "key", "words"), CASES)
def test_each_warning(old, new, key, words):
    assert GOOD.count(old) == 1
    told = found(GOOD.replace(old, new))
    if key is None:
        assert told == []
    else:
        assert [one for one in told if one[0] == key and words in one[1]], told


MARKS = {
    "0xca6c": ["wg-quick uses 0xca6c"],
    "0xca6c/0xffff": ["wg-quick uses 0xca6c"],
    "0x80000/0xf0000": ["Tailscale uses bits 0xff0000", "pbr uses bits 0xff0000"],
    "0x100/0x100": ["mwan3 uses bits 0x3f00"],
    "0x4000/0x4000": ["Kubernetes uses 0x4000, 0x8000"],
    "0x6d6f6c65": ["Mullvad VPN uses 0x6d6f6c65"],
}


@pytest.mark.parametrize("mark", MARKS)
def test_marks_that_are_somebodys(mark):
    told = found(GLUON.replace("0x1/0x1", mark))
    assert [key for key, _ in told] == ["uplink.wan.mark"] * len(MARKS[mark])
    for (_, message), words in zip(told, MARKS[mark], strict=True):
        assert message.startswith(words) and "if it ever runs here; choose other bits" in message


def test_the_resolver_of_another_uplink_as_a_server():
    text = GOOD.replace('listen = ["127.0.0.1:54"]', 'listen = ["192.0.2.1:54"]').replace(
        'lease = "/run/lte.dns"', 'servers = ["192.0.2.1"]'
    )
    ((key, message),) = found(text)
    assert key == "uplink.lte.resolver.servers[0]"
    assert "where the resolver of uplink 'wan' listens" in message


def test_mesh_neighbours_without_a_mesh():
    text = GOOD.replace('["bat0", "mesh*"]', "[]").replace('exempt = ["arp"]', 'exempt = ["arp", "vxlan-mesh"]')
    ((key, message),) = found(text)
    assert (key, message.partition(",")[0]) == ("uplink.wan.exempt[1]", "'inside' names no device")


@pytest.mark.parametrize("mark", ["0x1/0x1", "0x5100/0xff00", "0x10/0xf0", "0x8", "0x40000000/0x70000000", "0x2/0x3e"])
def test_marks_that_are_nobodys(mark):
    assert clashing(parse(mark)) == []


def test_what_is_installed_here_counts_for_more():
    mark = parse("0x5100/0xff00")
    mwan3 = next(one for one in OTHERS if one.name == "mwan3")
    assert clashing(mark, frozenset(mwan3.signs)) == [(mwan3, True)]
    mullvad = next(one for one in OTHERS if one.name == "Mullvad VPN")
    assert clashing(Mark(1, 1), frozenset(mullvad.signs)) == [(mullvad, True)]
    assert clashing(Mark(2, 2), frozenset(mullvad.signs)) == []
    ((_, told),) = found(GLUON.replace("0x1/0x1", "0x5100/0xff00"), frozenset(mwan3.signs))
    assert told.startswith("mwan3 uses bits 0x3f00") and "on this machine; choose other bits" in told


def test_the_table_of_others():
    for other in OTHERS:
        assert other.source
        for mark in other.marks:
            assert 0 < mark.mask <= FULL and not mark.value & ~mark.mask
            # Whoever takes exactly these bits is told, or would be if it were installed.
            wanted = Mark(mark.value or mark.mask, mark.mask)
            assert other in [one for one, _ in clashing(wanted, frozenset(other.signs))]
    assert all(sign.startswith("/") for sign in SIGNS)


def test_warnings_are_lines_on_stderr_and_change_no_status(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD.replace('lease = "/run/lte.dns"', 'lease = "/etc/resolv.conf"'))
    done = subprocess.run([*MAIN, "check", file], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith("proved\n")
    assert done.stderr.startswith(f"nftpolicy: {file}:24: uplink.lte.resolver.lease: /etc/resolv.conf names ")
    assert done.stderr.count("\n") == 1
