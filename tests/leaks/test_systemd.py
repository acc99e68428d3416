"""Real systemd starts a machine: the guard before the network, services in their group and marked, stops that keep it."""

import json
from collections.abc import Iterator

import pytest

from nftpolicy.policy.words import MARKS
from nftpolicy.runtime.service import preload
from tests.guarded import PROGRAM, ROOT
from tests.lab import machine
from tests.lab.machine import Machine

VALUE, MASK = 0x500, 0xFF00
GIDS = {"itself": 4001, "preload": 4002, "cgroup": 4003}
WAYS = [word for word in GIDS if word in MARKS]

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
NETWORK = f"""
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
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
    if lacks := machine.missing():
        pytest.skip(f"systemd can't be started here: it needs {', '.join(lacks)}")
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
    with machine.booted(tmp_path_factory.mktemp("machine"), ROOT, files, prepare, "/run/out/done", 60) as made:
        yield made


def out(started: Machine, name: str) -> str:
    text = started.read(f"/run/out/{name}")
    assert text is not None, f"{name} was not written; {started.read('/run/out/journal')}"
    return text


def test_the_guard_stands_before_the_network(started: Machine) -> None:
    assert out(started, "early") == "", "the control: nothing was there before"
    assert "table inet nftpolicy\n" in out(started, "network")


@pytest.mark.parametrize("word", WAYS)
def test_a_service_has_its_group_and_its_mark(started: Machine, word: str) -> None:
    found = json.loads(out(started, word))
    assert found["marks"] == [VALUE, VALUE]
    assert found["gid"] == GIDS[word]
    assert json.loads(out(started, "control"))["marks"] == [0, 0], "the control: a unit without a drop-in"


def test_a_stop_keeps_the_guard(started: Machine) -> None:
    before, after = out(started, "before").split(), out(started, "after").split()
    assert before == ["active"] * len(before), "inconclusive"
    assert after[:2] == ["inactive"] * 2
    assert "table inet nftpolicy\n" in out(started, "stopped")
    assert "policy drop" in out(started, "guard")


def test_a_program_that_may_not_mark_ends_and_systemd_says_so(started: Machine) -> None:
    assert out(started, "broken").strip() == "77"
    assert "libpacketmark" in out(started, "journal")
