"""Warnings of `check`: certain from the policy or from installed programs; none for good policies."""

import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.policy.errors import format_path
from nftpolicy.policy.known_marks import MARK_USER_FILES, MARK_USERS, conflicting_users
from nftpolicy.policy.lint import find_warnings
from nftpolicy.policy.load import load
from nftpolicy.policy.mark import FULL_MASK, Mark, parse_mark
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD, GOOD_ELSEWHERE, NAS

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]
GLUON = (ROOT / "rulesets/gluon-fastd.toml").read_text()
GOOD_ONES = [*sorted((ROOT / "rulesets").glob("*.toml")), *sorted((ROOT / "tests/golden").glob("*/policy.toml"))]
EXPECTED_WARNINGS = {"04-kernel-service": ["service.wireguard.kernel"]}  # a kernel socket on any port

# Text of the good policy -> replacement, the key, and a part of the warning.
CASES = [
    ('servers = ["192.0.2.53"]', 'servers = ["127.0.0.1"]', "uplink.wan.resolver.servers[0]", "is a resolver of this machine"),
    ('servers = ["192.0.2.53"]', 'servers = ["fe80::1%eth9"]', "uplink.wan.resolver.servers[0]", "is not a device of uplink"),
    ('lease = "/run/lte.dns"', 'lease = "/etc/resolv.conf"', "uplink.lte.resolver.lease", "contains the servers of all links"),
    ('lease = "/run/lte.dns"', 'sources = ["dhclient", "ra"]', "uplink.lte.resolver.sources[1]", "no router solicitation can be sent"),
    ('uplink = "lte"\nuser = 900', 'uplink = "wan"\nuser = 900', "uplink.lte.resolver", "no process may query its resolver"),
    ('["bat0", "mesh*"]\n', "[]\n", None, None),
    ('sport = ["udp/51820"]\n', "", "service.wg.kernel", "packets that local programs send through the tunnel are dropped"),
    ('sport = ["udp/51820"]\n', "sport = []\n", "service.wg.kernel", 'such as sport = ["udp/51820"]'),
    ('sport = ["udp/51820"]\n', NAS + 'ports = ["tcp/445", "udp/50-60"]\n', "lan.nas.ports[1]", "leave port 53 out"),
    ('sport = ["udp/51820"]\n', NAS, None, None),
    ('answer = ["ssh"]', 'answer = ["udp/69"]', "uplink.wan.answer[0]", "dnsmasq --tftp-single-port"),
    ('kernel = true\nsport = ["udp/51820"]\n', "kernel = false\nuser = 901\n", None, None),
]  # fmt: skip


def lint(text, present=frozenset()):
    policy, _ = load(text.encode())
    return [(format_path(path), message) for path, message in find_warnings(policy, present)]


@pytest.mark.parametrize("file", GOOD_ONES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_example_policies_have_expected_warnings(file):
    reported = lint(file.read_text())
    assert [key for key, _ in reported] == EXPECTED_WARNINGS.get(file.parent.name, [])


def test_good_policy_has_no_warnings():
    assert lint(GOOD) == []


@pytest.mark.parametrize(("old", "new", "key", "words"), CASES)
def test_change_of_policy_gives_expected_warning(old, new, key, words):
    assert GOOD.count(old) == 1
    reported = lint(GOOD.replace(old, new))
    if key is None:
        assert reported == []
    else:
        assert [one for one in reported if one[0] == key and words in one[1]], reported


MARKS = {
    "0xca6c": [("wg-quick", "0xca6c")],
    "0xca6c/0xffff": [("wg-quick", "0xca6c")],
    "0x80000/0xf0000": [("Tailscale", "bits 0xff0000"), ("pbr", "bits 0xff0000")],
    "0x100/0x100": [("mwan3", "bits 0x3f00")],
    "0x4000/0x4000": [("Kubernetes", "0x4000, 0x8000")],
    "0x6d6f6c65": [("Mullvad VPN", "0x6d6f6c65")],
}


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_known_programs_warn(mark):
    reported = lint(GLUON.replace("0x1/0x1", mark))
    assert [key for key, _ in reported] == ["uplink.wan.mark"] * len(MARKS[mark])
    for (_, message), (program, bits) in zip(reported, MARKS[mark], strict=True):
        assert message.startswith(f"{program} would conflict if installed: it uses {bits} (")
        assert message.endswith("; choose other bits")


def test_resolver_of_another_uplink_as_server_warns():
    text = GOOD.replace('listen = ["127.0.0.1:54"]', 'listen = ["192.0.2.1:54"]').replace(
        'lease = "/run/lte.dns"', 'servers = ["192.0.2.1"]'
    )
    ((key, message),) = lint(text)
    assert key == "uplink.lte.resolver.servers[0]"
    assert "the resolver of uplink 'wan' listens on 192.0.2.1" in message


def test_vxlan_mesh_without_mesh_devices_warns():
    text = GOOD.replace('["bat0", "mesh*"]', "[]").replace('exempt = ["arp"]', 'exempt = ["arp", "vxlan-mesh"]')
    ((key, message),) = lint(text)
    assert (key, message.partition(",")[0]) == ("uplink.wan.exempt[1]", "'inside' names no device")


@pytest.mark.parametrize("mark", ["0x1/0x1", "0x5100/0xff00", "0x10/0xf0", "0x8", "0x40000000/0x70000000", "0x2/0x3e"])
def test_free_marks_do_not_warn(mark):
    assert conflicting_users(parse_mark(mark)) == []


def test_installed_programs_conflict_with_more_marks():
    mark = parse_mark("0x5100/0xff00")
    mwan3 = next(one for one in MARK_USERS if one.name == "mwan3")
    assert conflicting_users(mark, frozenset(mwan3.installed_files)) == [(mwan3, True)]
    mullvad = next(one for one in MARK_USERS if one.name == "Mullvad VPN")
    assert conflicting_users(Mark(1, 1), frozenset(mullvad.installed_files)) == [(mullvad, True)]
    assert conflicting_users(Mark(2, 2), frozenset(mullvad.installed_files)) == []
    ((_, reported),) = lint(GLUON.replace("0x1/0x1", "0x5100/0xff00"), frozenset(mwan3.installed_files))
    assert reported.startswith("mwan3 is installed on this machine: it uses bits 0x3f00 (")
    assert reported.endswith("; choose other bits")


def test_known_marks_conflict_with_themselves():
    for other in MARK_USERS:
        assert other.source
        for mark in other.marks:
            assert 0 < mark.mask <= FULL_MASK and not mark.value & ~mark.mask
            # A policy with exactly these bits is warned, at least if the program is installed.
            wanted = Mark(mark.value or mark.mask, mark.mask)
            assert other in [one for one, _ in conflicting_users(wanted, frozenset(other.installed_files))]
    assert all(sign.startswith("/") for sign in MARK_USER_FILES)


def test_warnings_are_stderr_lines_with_status_zero(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD_ELSEWHERE.replace('lease = "/run/lte.dns"', 'lease = "/etc/resolv.conf"'))
    result = subprocess.run([*MAIN, "check", file], capture_output=True, text=True, timeout=limit(30), check=False)
    assert result.returncode == 0
    assert result.stdout.endswith("proved\n")
    assert result.stderr.startswith(f"nftpolicy: {file}:24: uplink.lte.resolver.lease: /etc/resolv.conf contains ")
    assert result.stderr.count("\n") == 1
