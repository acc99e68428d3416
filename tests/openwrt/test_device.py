"""Further parts of the device: the DNS servers that netifd learned, the resolver's mark, and the init script."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.integration.openwrt import tree
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from tests import busybox
from tests.guarded_lab import GLUON
from tests.lab.daemons import tool
from tests.lab.netns import Namespace, wait_until

from .router import CONFIG, ROOT, STATE, Router

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]


def shipped(**changes: str) -> Policy:
    text = GLUON.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return load(text.encode())[0]


@pytest.fixture
def router() -> Iterator[Router]:
    with Namespace("router") as space:
        yield Router(space, shipped())


def learned(router: Router, **servers: list[str]) -> str:
    """Return the server list that the runner makes of the answers of netifd, by interface."""
    devices = {"lan": "br-lan"}
    answers = {
        f"network.interface.{name}": {"status": {"dns-server": [], "inactive": {"dns-server": found}}}
        for name, found in servers.items()
    }
    answers["network.interface"] = {
        "dump": {"interface": [{"interface": name, "l3_device": devices.get(name, "br-wan")} for name in servers]}
    }
    router.space.outside(f"{CONFIG}/ubus.json").write_text(json.dumps(answers))
    router.nftpolicy("update-servers")
    return router.state("wan.servers").read_text()


def test_update_servers_writes_servers_of_uplink_interfaces(router: Router) -> None:
    said = learned(router, wan=["192.0.2.1", "192.0.2.1"], wan6=["fe80::1", "2001:db8::53"], lan=["10.0.0.1"])
    assert said == "nameserver 192.0.2.1\nnameserver fe80::1%br-wan\nnameserver 2001:db8::53\n"


def test_update_servers_skips_invalid_addresses(router: Router) -> None:
    assert learned(router, wan=["127.0.0.1", "::1", "0.0.0.0", "nonsense", "1.2.3.4; reboot", "192.0.2.1"]) == (
        "nameserver 192.0.2.1\n"
    )


def test_update_servers_without_servers_writes_empty_file(router: Router) -> None:
    assert learned(router, wan=["192.0.2.1"]) != ""
    assert learned(router, wan=[]) == ""


def test_update_servers_unchanged_list_is_not_written(router: Router) -> None:
    learned(router, wan=["192.0.2.1"])
    before = router.state("wan.servers").stat()
    learned(router, wan=["192.0.2.1"])
    after = router.state("wan.servers").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    learned(router, wan=["192.0.2.2"])
    assert router.state("wan.servers").stat().st_ino != before.st_ino


def test_update_servers_of_policy_ignores_netifd(router: Router) -> None:
    router.write(shipped(**{'lease  = "/run/nftpolicy/wan.dns"': 'servers = ["192.0.2.7", "fe80::7%br-wan"]'}))
    assert learned(router, wan=["192.0.2.1"]) == "nameserver 192.0.2.7\nnameserver fe80::7%br-wan\n"


def test_update_servers_of_owner_replace_learned_ones(router: Router) -> None:
    owned = router.space.outside(f"{CONFIG}/gluon-wan-dnsmasq.uci")
    owned.write_text("config static\n\tlist server '192.0.2.8'\n\tlist server '2001:db8::8'\n")
    assert learned(router, wan=["192.0.2.1"]) == "nameserver 192.0.2.8\nnameserver 2001:db8::8\n"
    owned.write_text("config static\n")
    assert learned(router, wan=["192.0.2.1"]) == "nameserver 192.0.2.1\n"
    owned.write_text("config static\n\tlist server '192.0.2.8'\n")
    router.write(shipped(**{'lease  = "/run/nftpolicy/wan.dns"': 'servers = ["192.0.2.7"]'}))
    assert learned(router, wan=["192.0.2.1"]) == "nameserver 192.0.2.7\n"  # the guard drops queries to others


def test_status_names_an_uplink_that_is_cut_off(router: Router) -> None:
    def named() -> list[str]:
        said = router.nftpolicy("status", check=False).stdout.splitlines()
        return [line for line in said if line.startswith("uplink ")]

    assert named() == ["uplink wan: no device is up (br-wan)"]
    router.space.ip("link add br-wan type veth peer name x", "link set x up", "link set br-wan up")
    assert named() == ["uplink wan: no default route in table 1, so its services reach only networks on the link"]
    router.nftpolicy("apply")
    assert named()  # a route of type unreachable is none
    assert f"nftpolicy: {named()[0]}" in router.nftpolicy("check").stderr
    router.space.ip("addr add 192.0.2.2/24 dev br-wan", "route add default via 192.0.2.1 dev br-wan table 1")
    assert named() == []


def test_watch_ends_monitors_of_a_killed_one(router: Router) -> None:
    def monitors() -> set[str]:
        lines = router.ash("-c", "ps -o pid,args").stdout.splitlines()
        return {line.split()[0] for line in lines if " monitor" in line}

    def watch() -> "subprocess.Popen[bytes]":
        argv = [str(busybox.path()), "ash", f"{ROOT}/{tree.RUNNER_PATH}", "watch"]
        return router.space.popen(argv, env=router.environment)

    first = watch()
    wait_until(lambda: len(monitors()) == 2, 20, "the monitors")
    wait_until(lambda: len(router.state("monitors").read_text().split()) == 2, 20, "their numbers")
    before = monitors()
    first.kill()
    first.wait()
    assert monitors() == before  # the control: nothing ends them
    watch()
    wait_until(lambda: len(monitors()) == 2 and not monitors() & before, 20, "the monitors of the second watch")


def test_watch_events_reach_root_alone(router: Router) -> None:
    """A user who reads from the pipe of `watch` would take its events, and the end of a repair."""
    learned(router, wan=["192.0.2.1"])
    router.start("watch")
    wait_until(router.state("monitors").exists, 20, "the monitors")
    found = [path.name for path in router.state("").iterdir() if not path.is_symlink()]
    assert {"events", "wan.servers", "alive"} <= {*found}

    def readable() -> set[str]:
        return {
            name
            for name in found
            if router.space.run(["test", "-r", f"{STATE}/{name}"], False, uid=65534).returncode == 0
        }

    assert readable() == {"wan.servers"}
    router.state("events").chmod(0o644)
    assert "events" in readable(), "the control"


# The mark of the resolver


def resolver(router: Router, preload: bool = True, mark: str = "1", nobody: bool = False) -> str:
    """Return the line of `status` for a process that stands for the resolver's dnsmasq."""
    library = router.space.outside("/run/libpacketmark.so")
    if not library.exists():  # any library will do: whether it is loaded is what is looked at
        maps = Path("/proc/self/maps").read_text().split()
        libc = Path(next(word for word in maps if "/libc" in word))
        shutil.copy(libc.with_name("libm.so.6"), library)
    environment = {"LIBPACKETMARK_MARK": mark} | ({"LD_PRELOAD": "/run/libpacketmark.so"} if preload else {})
    process = router.space.popen([str(tool("sleep")), "60"], env=environment, uid=65534 if nobody else None,
                                 gid=65534 if nobody else None)  # fmt: skip
    status = Path(f"/proc/{process.pid}/status").read_text()
    number = next(
        line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")
    )  # as it is called inside
    router.ash("-c", f"mkdir -p {STATE}; echo {number} >{STATE}/resolver-wan.pid")
    said = router.nftpolicy("status", check=False).stdout
    process.kill()
    process.wait()
    (line,) = [line for line in said.splitlines() if line.startswith("resolver wan: ")]
    return line


def test_status_resolver_with_library_may_set_mark(router: Router) -> None:
    assert "running, may set its mark" in resolver(router)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preload": False}, "libpacketmark is not loaded"),
        ({"mark": "0x1"}, "LIBPACKETMARK_MARK is not 1"),
        ({"nobody": True}, "it has no capability to set marks"),
    ],
)
def test_status_resolver_without_mark_is_reported(router: Router, options: dict[str, bool], said: str) -> None:
    assert said in resolver(router, **options)  # type: ignore[arg-type]


def test_status_finds_the_resolver_of_a_jail(router: Router) -> None:
    """Find the process by its command line, where its PID file has the number in the jail; ujail has the same words."""
    pid_file = f"{STATE}/resolver-wan.pid"
    router.ash("-c", f"mkdir -p {STATE}; echo 1 >{pid_file}")
    words = ["-c", "sleep 60; :", f"--pid-file={pid_file}"]
    router.space.popen(["ujail", *words], executable="/bin/sh")
    assert "resolver wan: is not running" in router.nftpolicy("status", check=False).stdout
    router.space.popen(["/usr/sbin/dnsmasq", *words], executable="/bin/sh", env={"LIBPACKETMARK_MARK": "1"})
    assert "resolver wan: libpacketmark is not loaded" in router.nftpolicy("status", check=False).stdout


def test_status_ignores_a_process_that_ends_meanwhile(router: Router) -> None:
    """Print no error of the shell for a process that grep has found and that is gone when its words are read."""
    router.program("grep", f'[ "$1" != -ls ] || exec echo /proc/4194305/cmdline; exec {busybox.path()} grep "$@"')
    status = router.nftpolicy("status", check=False)
    assert "resolver wan: is not running" in status.stdout
    assert status.stderr == ""


def test_status_without_resolver_is_reported(router: Router) -> None:
    assert "resolver wan: is not running" in router.nftpolicy("status", check=False).stdout


# The init script, with procd's functions that print their arguments

PROCD = """
procd_open_instance() { echo "instance $1"; }
procd_set_param() { echo "$@"; }
procd_append_param() { echo "more $@"; }
procd_close_instance() { :; }
procd_add_reload_trigger() { echo "trigger $@"; }
procd_add_raw_trigger() { echo "trigger $@"; }
procd_add_jail() { echo "jail $@"; }
procd_add_jail_mount() { echo "mount $@"; }
procd_add_jail_mount_rw() { echo "mount_rw $@"; }
"""


def started(router: Router, policy: Policy, call: str = "start_service", errors: bool = False) -> str:
    router.write(policy)
    router.space.outside("/run/libpacketmark.so").write_text("")
    script = tree.build_tree(policy)["etc/init.d/nftpolicy"].text
    script = script.replace("PROG=/usr/sbin/nftpolicy", f"PROG={ROOT}/usr/sbin/nftpolicy")
    script = script.replace("/usr/share/nftpolicy", f"{ROOT}/usr/share/nftpolicy").replace("/usr/lib/", "/run/")
    script = script.replace("STATE=/var/run/nftpolicy", f"STATE={STATE}")
    router.space.outside("/run/init").write_text(PROCD + script + f"\n{call}\n")
    done = router.ash("/run/init")
    return done.stderr if errors else done.stdout


def test_init_script_at_boot_logs_no_error(router: Router) -> None:
    """It starts before netifd, which sets lo up; the route of a query without another one is by lo."""
    router.space.ip("link set lo down")
    assert "missing: default dev lo" in router.nftpolicy("apply", check=False).stderr, "the control"
    assert started(router, shipped(), errors=True) == ""
    assert router.nftpolicy("check").returncode == 0


def test_init_script_loads_guard_before_daemons(router: Router) -> None:
    said = started(router, shipped())
    assert "chain guard" in router.space.run(["nft", "list", "ruleset"]).stdout
    instances = [line for line in said.splitlines() if line.startswith("instance")]
    assert instances == ["instance watch", "instance resolver-wan"]
    assert f"command {ROOT}/usr/sbin/nftpolicy watch" in said
    assert "LD_PRELOAD=/run/libpacketmark.so LIBPACKETMARK_MARK=1" in said
    assert "--user=nobody --port=54 " in said
    assert [line for line in said.splitlines() if line.startswith("more")] == [
        "more command --listen-address=127.0.0.1",
        "more command --listen-address=::1",
    ]


def test_init_script_passes_servers_of_domains_to_dnsmasq(router: Router) -> None:
    servers = 'servers = ["192.0.2.1", "192.0.2.2:5353"]\ndomains = { "corp.example" = ["[2001:db8::1]:54"] }'
    text = GLUON.read_text().replace("[uplink.wan.resolver]", f"[uplink.wan.resolver]\n{servers}")
    said = started(router, load(re.sub("(?m)^lease.*", "", text).encode())[0])
    assert [line for line in said.splitlines() if "--server=" in line] == [
        "more command --server=192.0.2.2#5353",
        "more command --server=/corp.example/2001:db8::1#54",
    ]
    router.nftpolicy("update-servers")
    assert router.space.outside(f"{STATE}/wan.servers").read_text() == "nameserver 192.0.2.1\n"


def test_init_script_writes_mark_as_decimal(router: Router) -> None:
    said = started(router, shipped(**{'"0x1/0x1"': '"0x1f00/0xff00"'}))
    assert "LIBPACKETMARK_MARK=7936" in said


def test_init_script_without_resolver_starts_none(router: Router) -> None:
    text = GLUON.read_text()
    begin, end = text.index("[uplink.wan.resolver]"), text.index("[service.fastd]")
    assert "resolver" not in started(router, load((text[:begin] + text[end:]).encode())[0])


def test_init_script_has_interface_and_firewall_triggers(router: Router) -> None:
    said = started(router, shipped(), "service_triggers")
    assert "trigger network firewall" in said
    assert "trigger interface.* 1000" in said


def test_hotplug_script_restores_ip_rules_at_ifup(router: Router) -> None:
    router.nftpolicy("apply")
    script = tree.build_tree(shipped())["etc/hotplug.d/iface/30-nftpolicy"].text
    router.space.outside("/run/hotplug").write_text(script.replace("/usr/sbin/", f"{ROOT}/usr/sbin/"))
    for action, mended in (("other", False), ("ifup", True)):
        router.space.ip("rule del priority 515")
        router.space.run([str(busybox.path()), "ash", "/run/hotplug"], env={**router.environment, "ACTION": action})
        there = "515:" in router.space.run(["ip", "rule"]).stdout
        assert there == mended
        if not there:
            router.nftpolicy("reconcile")


def test_sysctl_file_equals_values_of_runner(router: Router) -> None:
    router.space.ip("link add br-wan type veth peer name x")
    router.space.outside("/run/sysctl.conf").write_text(
        tree.build_tree(shipped())["etc/sysctl.d/50-nftpolicy.conf"].text
    )
    before = router.nftpolicy("check", check=False).stderr
    assert "sysctl" in before
    router.space.run([str(busybox.path()), "sysctl", "-p", "/run/sysctl.conf"])
    assert "sysctl" not in router.nftpolicy("check", check=False).stderr
