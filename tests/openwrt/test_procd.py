"""`install` on an OpenWrt device with Python: its init scripts under busybox's ash, from one start to the next.

rc.common, procd, netifd and ubus are stand-ins; the kernel, nft and nftpolicy are real.
"""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.integration import procd
from tests.lab.daemons import tool
from tests.lab.netns import wait_until

from .python_device import MARK, SERVICE, STRANGER, WAN, Device, device, flood

pytestmark = [pytest.mark.slow, pytest.mark.kernel, pytest.mark.usefixtures("able")]

POLICY = """\
name = "router"
inside = ["br-lan"]
[uplink.wan]
devices = ["br-wan"]
mark = "0x500/0xff00"
table = 7
exempt = ["arp", "ndp", "mld"]
[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
sources = ["netifd"]
[service.vpn]
uplink = "wan"
group = 800
"""
FILE = "/etc/nftpolicy/wan.toml"
OURS = ["S18nftpolicy-guard", "S21nftpolicy"]
INSTALL = ("install", "--program", "/opt/bin/nftpolicy", "--nft", "/usr/sbin/nft")


@pytest.fixture(scope="module")
def made(able: None) -> Iterator[Device]:
    if tool("dnsmasq") is None:
        pytest.skip("a resolver needs dnsmasq")
    with device() as found:
        yield found


@pytest.fixture
def router(made: Device) -> Device:
    """Device that is switched off, with the policy installed and enabled."""
    made.power_off()
    made.run("sh", "-c", "rm -rf /etc/nftpolicy/* /etc/init.d/nftpolicy* /etc/rc.d/*nftpolicy* /lib/upgrade /run")
    made.file(FILE).write_text(POLICY)
    made.servers()
    made.nftpolicy(*INSTALL)
    for name in procd.SCRIPT_NAMES:
        made.service(name, "enable")
    return made


def tables(router: Device) -> str:
    return router.space.run(["nft", "list", "tables"]).stdout


# --- the scripts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", procd.SCRIPT_NAMES)
def test_procd_scripts_pass_shellcheck(name: str, tmp_path: Path) -> None:
    assert shutil.which("shellcheck"), "apt-get install shellcheck"
    script = tmp_path / name
    script.write_text(procd.render_scripts("/usr/bin/nftpolicy", "/usr/sbin/nft")[name])
    assert "@" not in script.read_text().replace('"$@"', "")
    for checked in (["shellcheck", "-s", "sh", script], ["busybox", "ash", "-n", script]):
        done = subprocess.run(checked, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_procd_enable_links_equal_rc_common_links(router: Device) -> None:
    """`install --enable` makes the links of an image, rc.common those of a device."""
    assert [one for one in router.enabled() if "nftpolicy" in one] == OURS
    assert [Path(path).name for path in procd.ENABLE_LINKS] == OURS
    for path, target in procd.ENABLE_LINKS.items():
        assert str(router.file(path).readlink()) == target


# --- a start of the device --------------------------------------------------------------------


def test_procd_boot_leaks_nothing(router: Device) -> None:
    """A foreign process floods before the network exists: no packet leaves. Control: a boot without nftpolicy."""
    for ours in (False, True):
        router.power_off()
        router.arrived()
        process = router.space.spawn(flood, uid=65534, gid=4711, keep_caps=True)
        try:
            for script in router.enabled():
                if ours or "nftpolicy" not in script:
                    router.run(f"/etc/rc.d/{script}", "boot")
            left = router.arrived()
            # Packets for longer than all that took to come in the control.
            assert router.probe() >= SERVICE
            left |= router.arrived()
        finally:
            router.space.end(process)
        assert left & STRANGER == (set() if ours else STRANGER)


def test_procd_guard_precedes_network_without_python(router: Device) -> None:
    ours = router.file("opt/bin/nftpolicy")
    ours.rename(ours.with_name("aside"))
    try:
        seen = {}
        for script in router.enabled():
            router.run(f"/etc/rc.d/{script}", "boot", check=False)
            seen[script] = "table inet nftpolicy\n" in tables(router)
        assert seen == {"S10boot": False, "S18nftpolicy-guard": True, "S19firewall": True, "S20network": True,
                        "S21nftpolicy": True}  # fmt: skip
        assert router.probe() == SERVICE
    finally:
        ours.with_name("aside").rename(ours)


def test_procd_boot_starts_daemons_and_stop_keeps_guard(router: Device) -> None:
    router.servers("192.0.2.53")
    assert router.boot() == ""
    assert router.nftpolicy("status").returncode == 0
    assert router.probe() == SERVICE
    assert sorted(router.instances()) == ["resolver-wan", "watch"]
    wait_until(lambda: "servers of uplink wan: 192.0.2.53" in router.log(), 20, "netifd's server")
    for name in procd.SCRIPT_NAMES:
        router.service(name, "stop")
    assert router.instances() == {}
    assert router.probe() == SERVICE
    router.service("nftpolicy-guard", "restart")
    assert router.probe() == SERVICE
    router.power_off()
    assert router.boot() == ""
    assert router.nftpolicy("status").returncode == 0
    assert sorted(router.instances()) == ["resolver-wan", "watch"]
    # The history outlasts it, and has the same policy once.
    assert re.findall(r"^ +(\d+) ", router.nftpolicy("history").stdout, re.MULTILINE) == ["1"]


# --- changes ----------------------------------------------------------------------------------


def test_procd_reload_applies_changed_policy(router: Device) -> None:
    router.boot()
    router.settle()
    before = router.instances()
    router.file(FILE).write_text(POLICY.replace('"0x500/0xff00"', '"0x600/0xff00"'))
    assert router.probe() == SERVICE
    router.service("nftpolicy", "reload")
    assert router.probe(0x600) == SERVICE
    assert router.probe(MARK) == set(), "the old mark passes"
    after = router.instances()
    assert after["watch"] == before["watch"], "it takes the policy over by itself"
    assert after["resolver-wan"] != before["resolver-wan"]
    begin, end = POLICY.index("[uplink.wan.resolver]"), POLICY.index("[service.vpn]")
    router.file(FILE).write_text(POLICY[:begin] + POLICY[end:])
    router.service("nftpolicy", "reload")
    assert list(router.instances()) == ["watch"]


def test_procd_reload_of_invalid_policy_changes_nothing(router: Device) -> None:
    router.boot()
    router.settle()
    before = router.instances()
    other = POLICY.replace('"0x500/0xff00"', '"0x600/0xff00"')
    router.file(FILE).write_text(other + "nonsense = 1\n")
    done = router.service("nftpolicy", "reload", check=False)
    assert done.returncode != 0
    assert re.fullmatch(rf"nftpolicy: {FILE}:\d+:1: .*nonsense.*\n    nonsense = 1\n    \^+\n", done.stderr)
    assert router.instances() == before
    assert router.nftpolicy("status").returncode == 0
    assert router.probe() == SERVICE
    # At the next start the guard of the last good one holds, and nothing but its history is left of the time before.
    router.power_off()
    assert router.remembered() == []
    assert "nonsense" in router.boot()
    assert router.service("nftpolicy", "start", check=False).returncode != 0
    assert str(router.file("run").readlink()) == "/var/run"
    assert router.probe() == SERVICE
    assert router.probe(0x600) == set()
    assert re.findall(r"^ +(\d+) ", router.nftpolicy("history").stdout, re.MULTILINE) == ["1"]
    assert router.nftpolicy("rollback", "1", check=False).returncode == 0
    assert router.nftpolicy("status").returncode == 0


def test_procd_event_restores_rules_unless_released(router: Device) -> None:
    # Without the watch, which would be quicker.
    ours = router.file("opt/bin/nftpolicy")
    text = ours.read_text()
    ours.write_text(text.replace("exec", "[ $1 != watch ] || exec sleep 600\nexec"))
    try:
        router.boot()
        rules = router.space.run(["ip", "rule"]).stdout
        for event in (("interface.update",), ("config.change", "network")):
            router.service("network", "restart")
            assert router.space.run(["ip", "rule"]).stdout != rules, "the control: a start of netifd takes them"
            router.run("procd", "event", "config.change", "system")
            assert router.space.run(["ip", "rule"]).stdout != rules
            router.run("procd", "event", *event)
            assert router.space.run(["ip", "rule"]).stdout == rules
        router.nftpolicy("release")
        router.run("procd", "event", "interface.update")
        assert "nftpolicy" not in tables(router)
    finally:
        ours.write_text(text)


def test_procd_uninstall_keeps_guard_until_release(router: Device) -> None:
    router.boot()
    done = router.nftpolicy("uninstall")
    assert "the policy stays in force until the machine restarts" in done.stderr
    assert "'nftpolicy release' opens them; when the program is gone: nft delete table inet nftpolicy" in done.stderr
    assert [one for one in router.enabled() if "nftpolicy" in one] == []
    assert router.instances() == {}
    left = [one.name for one in router.file("etc/nftpolicy").rglob("*") if one.is_file()]
    assert sorted({*left} - {"events.jsonl"}) == ["000001.json", "wan.toml"], "the history and the person's policy stay"
    assert not router.file("lib/upgrade").exists() or not list(router.file("lib/upgrade").rglob("nftpolicy"))
    assert router.probe() == SERVICE
    router.nftpolicy("release")
    assert router.probe() == SERVICE | STRANGER
    assert router.nftpolicy("uninstall").stdout == "there is nothing to remove\n"


# --- kill -9 ----------------------------------------------------------------------------------

KILLED = """
import sys
from nftpolicy.cli.main import main
from nftpolicy.kernel.linux import Linux
from tests.faulty_kernel import Faulty
from nftpolicy.cli import common
whole = common.this_kernel
common.this_kernel = lambda: Faulty(whole(), {at}, "SIGKILL")
sys.argv = ["nftpolicy", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("restart", [True, False], ids=["restart", "again"])
def test_procd_killed_apply_keeps_guard_and_next_completes(router: Device, restart: bool) -> None:
    ours = router.file("opt/bin/nftpolicy")
    text = ours.read_text()
    router.file("opt/killed.py").write_text(KILLED.format(at=2))
    python = text.split()[2].rpartition("/")[0] + "/python"
    ours.write_text(f'#!/bin/sh\n[ "$1" = apply ] || exit 1\nexec {python} /opt/killed.py "$@"\n')
    try:
        for script in router.enabled()[:-1]:
            router.run(f"/etc/rc.d/{script}", "boot")
        done = router.run("/opt/bin/nftpolicy", "apply", FILE, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert router.probe() == SERVICE
    finally:
        ours.write_text(text)
    assert router.nftpolicy("status", FILE, check=False).returncode == 1, "inconclusive: it had ended"
    if restart:
        router.power_off()
        router.boot()
    else:
        router.service("nftpolicy", "start")
    assert router.nftpolicy("status").returncode == 0
    assert router.probe() == SERVICE
    assert WAN in router.nftpolicy("status").stdout
