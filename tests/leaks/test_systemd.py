"""Real systemd starts a machine: the guard before the network, services in their group and marked, a stop that keeps
the guard, and the resolvers of the uplinks.
"""

import json
import re
from collections.abc import Iterator

import pytest

from nftpolicy.policy.vocabulary import MARKS_VALUES
from nftpolicy.runtime.services import preload
from tests.guarded_lab import PROGRAM, ROOT
from tests.lab import systemd_machine
from tests.lab.limits import limit
from tests.lab.systemd_machine import Machine

pytestmark = pytest.mark.slow

VALUE, MASK = 0x500, 0xFF00
GIDS = {"itself": 4001, "preload": 4002, "cgroup": 4003}
WAYS = [word for word in GIDS if word in MARKS_VALUES]

POLICY = """
name = "boot"
inside = ["mesh*"]
[uplink.wan]
devices = ["br-wan"]
mark = "0x500/0xff00"
table = 7
""" + "".join(f'[service.{word}]\nuplink = "wan"\ngroup = {GIDS[word]}\nmarks = "{word}"\n' for word in WAYS)

# A service: which marks its sockets have. "itself" puts it on, the others do nothing for it.
PROBE = """
import json, os, socket, sys
found = []
for family in (socket.AF_INET, socket.AF_INET6):
    one = socket.socket(family, socket.SOCK_DGRAM)
    if sys.argv[1] == "itself":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x500)
    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
with open(f"/run/out/{sys.argv[1]}", "w") as out:
    json.dump({"marks": found, "gid": os.getgid(), "groups": os.getgroups()}, out)
"""
SERVICE = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 /opt/probe.py {word}
"""
# How the machine calls nftpolicy: its units hide /tmp and the homes, where a checkout may be.
OURS = "/opt/nftpolicy"
WRAPPER = """#!/bin/sh
PYTHONPATH=/opt/share:$(echo /opt/share/.venv/lib/python3*/site-packages)
PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
exec /usr/bin/python3 -m nftpolicy "$@"
"""
SEE = "/usr/sbin/nft list tables"
# Says what is in the kernel before the guard, when the network begins, and when all is up.
EARLY = f"""
[Unit]
DefaultDependencies=no
Before=nftpolicy-guard.service
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p /run/out; chmod 1777 /run/out; {SEE} >/run/out/early; sleep 1'
"""
# Like systemd-networkd it waits for network-pre.target and for nothing else.
NETWORKD = """
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
"""
NETWORK = f"""{NETWORKD}
ExecStart=/bin/sh -c '{SEE} >/run/out/network; ip link add br-wan type veth peer name far; ip link set br-wan up; ip link set far up'
"""
NAMED = " ".join(f"{word}.service" for word in WAYS)
LATE = f"""
[Unit]
After={NAMED} control.service broken.service nftpolicy.service
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/late.sh
"""
LATE_SCRIPT = f"""
cd /run/out
systemctl show -p Result,ActiveState {NAMED} control.service broken.service >states
systemctl is-active nftpolicy.service nftpolicy-guard.service {NAMED} >before
systemctl stop nftpolicy.service nftpolicy-guard.service
systemctl is-active nftpolicy.service nftpolicy-guard.service {NAMED} >after
{SEE} >stopped
systemctl show -p ExecMainStatus --value broken.service >broken
nft list chain inet nftpolicy guard >guard
journalctl -b --no-pager >journal 2>&1
touch done
"""
# A program that may not mark: the library ends it.
BROKEN = """
[Service]
Type=oneshot
User=65534
Environment=LD_PRELOAD={library} LIBPACKETMARK_MARK=1
ExecStart=/usr/bin/python3 /opt/probe.py broken
"""


def enabled(*names: str) -> str:
    wants = "etc/systemd/system/multi-user.target.wants"
    return f"mkdir -p {wants}\n" + "".join(f"ln -s ../{name} {wants}/{name}\n" for name in names)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if lacks := systemd_machine.missing():
        pytest.skip(f"systemd cannot be started here: it needs {', '.join(lacks)}")
    if not preload.LIBRARY.exists():
        pytest.skip("libpacketmark.so is not built, since there was no C compiler (python hatch_build.py)")
    units = {
        "early": EARLY, "network": NETWORK, "late": LATE, "control": SERVICE.format(word="control"),
        "broken": BROKEN.format(library=preload.LIBRARY), **{word: SERVICE.format(word=word) for word in WAYS},
    }  # fmt: skip
    files = {f"etc/systemd/system/{name}.service": text for name, text in units.items()}
    files |= {"opt/probe.py": PROBE, "opt/late.sh": LATE_SCRIPT, "opt/policy.toml": POLICY, "opt/nftpolicy": WRAPPER}
    # systemd takes no group without a name, not even by its number.
    groups = "".join(f"name-{word}:x:{gid}:\n" for word, gid in GIDS.items())
    prepare = f"""
    printf '{groups}' >>etc/group
    chmod 755 opt/nftpolicy
    {PROGRAM} install --destdir "$root" --program {OURS} --nft /usr/sbin/nft opt/policy.toml
    {PROGRAM} units --destdir "$root" --program {OURS} --to /etc/systemd/system opt/policy.toml
    systemctl --root="$root" enable nftpolicy-guard.service nftpolicy.service
    {enabled(*(f"{name}.service" for name in units))}
    """
    with systemd_machine.booted(tmp_path_factory.mktemp("machine"), ROOT, files, prepare, "/run/out/done", 60) as made:
        yield made


def out(started: Machine, name: str) -> str:
    text = started.read(f"/run/out/{name}")
    assert text is not None, f"{name} was not written; {started.read('/run/out/journal')}"
    return text


def test_systemd_loads_guard_before_network(started: Machine) -> None:
    assert out(started, "early") == "", "the control: nothing was there before"
    assert "table inet nftpolicy\n" in out(started, "network")


@pytest.mark.parametrize("word", WAYS)
def test_systemd_service_has_group_and_mark(started: Machine, word: str) -> None:
    found = json.loads(out(started, word))
    assert found["marks"] == [VALUE, VALUE]
    assert found["gid"] == GIDS[word]
    assert json.loads(out(started, "control"))["marks"] == [0, 0], "the control: a unit without a drop-in"


def test_systemd_stop_keeps_guard(started: Machine) -> None:
    before, after = out(started, "before").split(), out(started, "after").split()
    assert before == ["active"] * len(before), "inconclusive"
    assert after[:2] == ["inactive"] * 2
    assert "table inet nftpolicy\n" in out(started, "stopped")
    assert "policy drop" in out(started, "guard")


def test_systemd_reports_program_without_capability(started: Machine) -> None:
    assert out(started, "broken").strip() == "77"
    assert "libpacketmark" in out(started, "journal")


# --- the resolvers ---------------------------------------------------------------------------

WHO = "who.example"
HOMES = {"192.0.2.1": "198.51.100.1", "192.0.2.9": "198.51.100.9"}  # a server of the uplink -> how it answers
FIRST, SECOND = HOMES
WITH_RESOLVER = f"""
name = "names"
inside = ["mesh*"]
[uplink.wan]
devices = ["br-wan"]
mark = "0x500/0xff00"
table = 7
exempt = ["arp"]
[uplink.wan.resolver]
servers = ["{FIRST}"]
[service.vpn]
uplink = "wan"
group = 4001
"""
# "-" in the name of an instance of systemd is what "/" becomes when a path is escaped.
TWO = f"""{WITH_RESOLVER}
[uplink.my-lte]
devices = ["lte0"]
mark = "0x600/0xff00"
table = 8
[uplink.my-lte.resolver]
servers = ["{FIRST}"]
listen = ["127.0.0.1:55"]
[service.other]
uplink = "my-lte"
group = 4002
"""
WAN_AT_HOME = f"""{NETWORKD}
ExecStart=/bin/sh -ec 'mkdir -p /run/out; chmod 1777 /run/out; ip netns add home; ip link set lo up; \
    ip link add br-wan type veth peer name far netns home; ip addr add 192.0.2.2/24 dev br-wan; ip link set br-wan up; \
    ip -n home addr add 192.0.2.1/24 dev far; ip -n home addr add 192.0.2.9/24 dev far; ip -n home link set far up; \
    ip route add default via 192.0.2.1 dev br-wan table 7'
"""
HOME = """
[Unit]
Requires=network.service
After=network.service
[Service]
ExecStart=/bin/ip netns exec home /usr/sbin/dnsmasq -k --conf-file=/dev/null --pid-file --user=root --no-resolv --no-hosts \
    --bind-interfaces --listen-address={server} --host-record={who},{answer} --log-queries --log-facility=/run/out/at-{server}
"""
# Arguments: group, server. Its answer, or an error word.
ASK = f"""
import os, sys
sys.path.insert(0, "/opt/share")
from tests.lab.dns_message import ask
os.setgroups([])
os.setgid(int(sys.argv[1]))
print(ask(sys.argv[2], "{WHO}", 4, seconds=1))
"""
LATE_NAMES = f"""
cd /run/out
wan=nftpolicy-resolver@wan.service
lte=nftpolicy-resolver@my-lte.service
asked() {{ /usr/bin/python3 -B /opt/ask.py "$@"; }}
shows() {{ systemctl show -p "$1" --value "$2"; }}
# Arguments: seconds, command.
until_ok() {{ tries=$(($1 * {round(limit(1) / 2)})); shift; until "$@"; do tries=$((tries - 1)); [ $tries -gt 0 ] || return; sleep 0.2; done; }}
answers() {{ asked 4001 127.0.0.1 | grep -qF "$1"; }}
again() {{ [ "$(shows NRestarts $wan)" = "$1" ] && [ "$(shows ActiveState $wan)" = active ]; }}
state() {{ echo "$(systemctl is-active $1) $(systemctl is-enabled $1)"; }}
dnsmasqs() {{ pgrep -f servers-file=; }}
other() {{ [ "$(shows MainPID $wan)" != $1 ] && [ "$(shows ActiveState $wan)" = active ]; }}

{{ state $wan; shows StatusText $wan; }} >boot
until_ok 10 answers {HOMES[FIRST]}
asked 4001 127.0.0.1 >served
asked 0 127.0.0.1 >nobody
ss -Hanup -e 'sport = 54' >sockets
systemctl show -p Before,After $wan >order

watch=nftpolicy-watch.service
for unit in $watch $wan; do grep -hE '^(NoNewPrivs|Seccomp|CapBnd):' /proc/$(shows MainPID $unit)/status; done >sandbox
# What watch does when it starts is not logged as a repair.
watches() {{ journalctl -b --no-pager -u $watch | grep -q event=proof; }}
until_ok 10 watches
nft delete table inet nftpolicy
until_ok 10 nft list table inet nftpolicy
nft list table inet nftpolicy >repaired
timer() {{ cat /run/nftpolicy/netns-*/pending.json | tr -d ' \\n' | grep -o '"deadman":{{"pid":[0-9]*' | grep -o '[0-9]*$'; }}
next_timer() {{ [ "$(timer)" -gt 0 ] && [ "$(timer)" != $1 ]; }}
sed 's/table = 7/table = 9/' /opt/policy.toml >/opt/trial.toml
/opt/nftpolicy apply --confirm 600 /opt/trial.toml >tried 2>&1
pid=$(timer)
kill -9 $pid
until_ok 20 next_timer $pid
{{ echo "$pid" "$(timer)"; cat /proc/$(timer)/cmdline | tr '\\0' ' '; }} >timer
/opt/nftpolicy rollback
journalctl -b --no-pager -u $watch >watched

dnsmasqs >killed-before
systemctl kill --kill-who=main -s KILL $wan
until_ok 20 again 1
dnsmasqs >killed-after
asked 4001 127.0.0.1 >killed

pid=$(shows MainPID $wan)
sed 's/{FIRST}/{SECOND}/' /opt/policy.toml >/etc/nftpolicy/policy.toml
systemctl reload nftpolicy.service
until_ok 20 other $pid
asked 4001 127.0.0.1 >reloaded
pid=$(shows MainPID $wan)
echo nonsense >/etc/nftpolicy/policy.toml
systemctl reload nftpolicy.service 2>/dev/null; echo $? >refused
sleep 1
[ "$(shows MainPID $wan)" = $pid ] && asked 4001 127.0.0.1 >>refused

cp /opt/two.toml /etc/nftpolicy/policy.toml
/opt/nftpolicy install --enable --program /opt/nftpolicy --nft /usr/sbin/nft >two 2>&1
{{ state $wan; state $lte; }} >>two
cat /proc/$(shows MainPID $lte)/cmdline | tr '\\0' ' ' >lte
until_ok 10 answers {HOMES[FIRST]}
pid=$(shows MainPID $wan)
/opt/nftpolicy install --enable --program /opt/nftpolicy --nft /usr/sbin/nft >twice 2>&1
[ "$(shows MainPID $wan)" = $pid ] && echo same >>twice
cp /opt/policy.toml /etc/nftpolicy/policy.toml
/opt/nftpolicy install --enable --program /opt/nftpolicy --nft /usr/sbin/nft >one 2>&1
{{ state $wan; state $lte; }} >>one 2>&1

until_ok 10 answers {HOMES[FIRST]}
systemctl stop nftpolicy.service
state $wan >stopped
systemctl start nftpolicy.service
until_ok 10 answers {HOMES[FIRST]}
until_ok 10 systemctl is-active --quiet $wan  # it answers a moment before it says that it is ready
state $wan >>stopped

/opt/nftpolicy uninstall >uninstalled 2>&1
systemctl is-active $wan >gone
dnsmasqs >>gone
find /etc/systemd /run/systemd/system -name 'nftpolicy*' >>gone
asked 4001 127.0.0.1 >unanswered
# The watch, which would move this route, has ended.
ip route replace 192.0.2.0/24 dev br-wan
asked 0 {FIRST} >guarded
/opt/nftpolicy release /opt/policy.toml >released 2>&1
asked 0 {FIRST} >open
journalctl -b --no-pager >journal 2>&1
touch done
"""


@pytest.fixture(scope="module")
def resolving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if lacks := systemd_machine.missing():
        pytest.skip(f"systemd cannot be started here: it needs {', '.join(lacks)}")
    homes = {f"home-{server}": HOME.format(server=server, who=WHO, answer=answer) for server, answer in HOMES.items()}
    late = f"[Unit]\nAfter=nftpolicy-resolver@wan.service {' '.join(f'{one}.service' for one in homes)}\n"
    late += "[Service]\nType=oneshot\nExecStart=/bin/sh /opt/late.sh\n"
    units = {"network": WAN_AT_HOME, "late": late, **homes}
    files = {f"etc/systemd/system/{name}.service": text for name, text in units.items()}
    files |= {"opt/policy.toml": WITH_RESOLVER, "opt/two.toml": TWO, "opt/nftpolicy": WRAPPER}
    files |= {"opt/ask.py": ASK, "opt/late.sh": LATE_NAMES}
    # The image is made with the order that "install" names.
    prepare = f"""
    chmod 755 opt/nftpolicy
    {PROGRAM} install --destdir "$root" --program {OURS} --nft /usr/sbin/nft opt/policy.toml >said
    eval "$(sed -n 's/^next, when the image is made: //p' said)"
    {enabled(*(f"{name}.service" for name in units))}
    """
    with systemd_machine.booted(tmp_path_factory.mktemp("machine"), ROOT, files, prepare, "/run/out/done", 120) as made:
        yield made


def test_systemd_resolver_serves_at_boot_with_mark(resolving: Machine) -> None:
    assert out(resolving, "boot").split("\n")[:2] == ["active enabled", f"servers: {FIRST}"]
    assert out(resolving, "served").strip() == f"['{HOMES[FIRST]}']"
    assert f"query[A] {WHO} from 192.0.2.2" in out(resolving, f"at-{FIRST}"), "it went by the uplink"
    sockets = out(resolving, "sockets").strip().splitlines()
    assert sockets and all("fwmark:0x500" in one for one in sockets), sockets
    assert "nss-lookup.target" in re.search("^Before=(.*)", out(resolving, "order"), re.MULTILINE)[1].split()


def test_systemd_unmarked_query_is_dropped_by_guard(resolving: Machine) -> None:
    assert out(resolving, "guarded").strip() == "EPERM"
    assert out(resolving, "open").strip() == f"['{HOMES[FIRST]}']", "the control: it gets there without the guard"
    assert out(resolving, "nobody").strip() == "ECONNREFUSED"


def test_systemd_restarts_killed_resolver(resolving: Machine) -> None:
    before, after = (out(resolving, f"killed-{when}").split() for when in ("before", "after"))
    assert len(before) == len(after) == 1
    assert before != after, "the dnsmasq of before is gone"
    assert out(resolving, "killed").strip() == f"['{HOMES[FIRST]}']"


def test_systemd_units_run_in_their_sandbox(resolving: Machine) -> None:
    """What watch and resolver do all day needs nothing that their units refuse."""
    status = re.findall(r"^(\w+):\s+(\w+)$", out(resolving, "sandbox"), re.MULTILINE)
    assert [value for name, value in status if name == "NoNewPrivs"] == ["1", "1"]
    assert [value for name, value in status if name == "Seccomp"] == ["2", "2"], "a filter"
    bounding = [int(value, 16) for name, value in status if name == "CapBnd"]
    assert len(bounding) == 2
    assert not any(value >> 21 & 1 for value in bounding), "none has CAP_SYS_ADMIN"
    assert "chain guard" in out(resolving, "repaired")
    watched = out(resolving, "watched")
    assert "event=restored what=table:inet" in watched, watched
    assert "not permitted" not in watched


def test_systemd_watch_restarts_timer_in_its_sandbox(resolving: Machine) -> None:
    killed, restarted, *command = out(resolving, "timer").split()
    assert killed.isdigit(), out(resolving, "tried")
    assert killed != restarted, out(resolving, "watched")
    assert "--at-deadline" in command


def test_systemd_policy_reload_reloads_resolver(resolving: Machine) -> None:
    assert out(resolving, "reloaded").strip() == f"['{HOMES[SECOND]}']"
    assert out(resolving, "refused").split("\n")[:2] == ["1", f"['{HOMES[SECOND]}']"], (
        "one that is refused changes nothing"
    )


def test_systemd_resolvers_follow_policy(resolving: Machine) -> None:
    assert out(resolving, "two").splitlines()[-2:] == ["active enabled"] * 2
    assert "resolver --uplink my-lte /etc/nftpolicy/policy.toml" in out(resolving, "lte")
    twice = out(resolving, "twice").splitlines()
    assert (twice[0], twice[-1]) == ("all files are up to date already", "same")
    one = out(resolving, "one").splitlines()
    assert "stopped and disabled nftpolicy-resolver@my-lte.service: the policy no longer has these resolvers" in one
    assert one[-2:] == ["active enabled", "inactive disabled"]


def test_systemd_policy_stop_and_start_include_resolver(resolving: Machine) -> None:
    assert out(resolving, "stopped").splitlines() == ["inactive enabled", "active enabled"]


def test_systemd_uninstall_stops_resolver(resolving: Machine) -> None:
    assert out(resolving, "gone").split() == ["inactive"]
    assert out(resolving, "unanswered").strip() == "ECONNREFUSED"
    assert "removed /etc/systemd/system/nftpolicy-resolver@.service" in out(resolving, "uninstalled")
    assert "the policy stays in force until the machine restarts" in out(resolving, "uninstalled")
