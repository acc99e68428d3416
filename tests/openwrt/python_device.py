"""A namespace as an OpenWrt device that has Python: a root of its own, in memory, whose /etc is its flash.

Its programs are those of this machine, and its shell and small programs are busybox's. Stand-ins are rc.common and
procd (rc_common.sh, procd_stand_in.py), ubus (fake_tools.py), and the scripts of firewall and network.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests import busybox
from tests.guarded_lab import PROGRAM
from tests.guarded_lab import ROOT as CHECKOUT
from tests.lab.daemons import tool
from tests.lab.limits import brief
from tests.lab.netns import Namespace, veth, wait_until

from .fw4_stand_in import FIXTURES

HERE = Path(__file__).parent
ROOT = "/run/device"
WAN, PORT = "br-wan", "eth1"
OURS = {4: "192.0.2.2", 6: "2001:db8::2"}
THEIRS = {4: "192.0.2.1", 6: "2001:db8::1"}
_LENGTH = {4: 24, 6: 64}
_NETS = {4: "192.0.2.0/24", 6: "2001:db8::/64"}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
NUMBER = 9  # the port of the probes
MARK = 0x500
STRANGER, SERVICE = ({f"{word} {family}" for family in OURS} for word in ("stranger", "service"))

_MAKE = f"""
set -eu
mkdir {ROOT}
mount -t tmpfs -o mode=755,size=16m tmpfs {ROOT}
cd {ROOT}
mkdir -p usr bin sbin lib dev proc sys tmp root opt config etc/init.d etc/rc.d etc/nftpolicy
ln -s tmp var
mkdir -p ./{CHECKOUT}
mount --bind /usr usr
mount -o remount,bind,ro usr
mount --bind {CHECKOUT} ./{CHECKOUT}
mount -o remount,bind,ro ./{CHECKOUT}
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
for one in /usr/lib/*; do ln -s "$one" lib/; done
for one in /lib64 /lib32; do [ ! -L $one ] || cp -a $one .; done
for one in passwd group nsswitch.conf ld.so.cache protocols; do [ ! -e /etc/$one ] || cp /etc/$one etc/; done
echo "DISTRIB_ID='OpenWrt'" >etc/openwrt_release
touch sbin/netifd
"""
_SCRIPT = "#!/bin/sh /etc/rc.common\nSTART={start}\nstart() {{\n{body}\n}}\n"
_BOOT = "mkdir -p /var/run/ubus /var/lock; : >/var/run/ubus/ubus.sock"
_FIREWALL = "nft -f /opt/fw4.nft"
# As netifd begins: it deletes all ip rules, and makes what its configuration says (ip4table 7 of the WAN).
_NETWORK = "\n".join([
    "for family in -4 -6; do",
    "ip $family rule flush; ip $family rule add priority 32766 lookup main; done",
    "ip rule add priority 32767 lookup default",
    "ip link set lo up",
    f"[ ! -e /sys/class/net/{PORT} ] || ip link set {PORT} name {WAN}",
    f"ip link set {WAN} up",
    *(f"ip -{f} address replace {OURS[f]}/{_LENGTH[f]} dev {WAN} {'nodad' if f == 6 else ''}" for f in OURS),
    *(f"ip -{family} route replace {net} dev {WAN} table 7" for family, net in _NETS.items()),
])  # fmt: skip


class Device:
    """`space` as the device, and `home`, its home network."""

    def __init__(self, space: Namespace, home: Namespace) -> None:
        self.space, self.home = space, home
        space.run(["sh", "-c", _MAKE])
        shutil.copy(str(busybox.path()), self.file("bin/busybox"))
        for name in {"sh", *busybox.applets()} - {"ip", "busybox"}:
            self.file(f"bin/{name}").symlink_to("busybox")
        self.program("procd", f'exec {sys.executable} -I -S /opt/procd_stand_in.py /tmp/procd "$@"')
        # fake_tools.py wants no options.
        self.program(
            "ubus", f'[ "$1" != -t ] || shift 2; exec {sys.executable} -I -S /opt/fake_tools.py ubus /config "$@"'
        )
        self.program("nftpolicy", f'exec {PROGRAM} "$@"')
        for name in ("procd_stand_in.py", "fake_tools.py"):
            self.file(f"opt/{name}").write_text((HERE / name).read_text())
        self.file("etc/rc.common").write_text((HERE / "rc_common.sh").read_text())
        self.file("etc/rc.common").chmod(0o755)
        rendered = (FIXTURES / "default-router" / "rendered.nft").read_text()
        self.file("opt/fw4.nft").write_text(rendered.replace("wan0", WAN))
        for name, start, body in (("boot", 10, _BOOT), ("firewall", 19, _FIREWALL), ("network", 20, _NETWORK)):
            self.script(name, start, body)
        self.servers()
        self._sockets = [self._receiver(family) for family in OURS]

    def file(self, path: str) -> Path:
        """Return the path of a file of the device, from outside."""
        return self.space.outside(f"{ROOT}/{path}")

    def program(self, name: str, body: str) -> None:
        """Write a program into /opt/bin."""
        place = self.file(f"opt/bin/{name}")
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!/bin/sh\n{body}\n")
        place.chmod(0o755)

    def script(self, name: str, start: int, body: str) -> None:
        """Write an init script and enable it."""
        place = self.file(f"etc/init.d/{name}")
        place.write_text(_SCRIPT.format(start=start, body=body))
        place.chmod(0o755)
        self.run(f"/etc/init.d/{name}", "enable")

    def servers(self, *found: str) -> None:
        """Set the DNS servers that netifd has of its interface wan."""
        one = {"interface": "wan", "l3_device": WAN, "dns-server": [], "inactive": {"dns-server": list(found)}}
        self.file("config/ubus.json").write_text(json.dumps({"network.interface": {"dump": {"interface": [one]}}}))

    # Running

    def run(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a program of the device."""
        argv = [str(tool("chroot")), ROOT, *words]
        env = {"PATH": "/opt/bin:/bin:/usr/sbin:/usr/bin:/sbin", "PYTHONDONTWRITEBYTECODE": "1"}
        return self.space.run(argv, check=check, env=env, timeout=90)

    def nftpolicy(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.run("/opt/bin/nftpolicy", *words, check=check)

    def service(self, name: str, verb: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.run(f"/etc/init.d/{name}", verb, check=check)

    def enabled(self) -> list[str]:
        """Return the enabled scripts, in start order."""
        return sorted(one.name for one in self.file("etc/rc.d").iterdir() if one.name.startswith("S"))

    def boot(self) -> str:
        """Start the enabled scripts; return their standard error."""
        return "".join(self.run(f"/etc/rc.d/{one}", "boot", check=False).stderr for one in self.enabled())

    def power_off(self) -> None:
        """Delete everything that a restart loses: processes, the state of the kernel, and /tmp."""
        self.run("procd", "delete", "nftpolicy")
        self.space.nft("flush ruleset\n")
        for family in (4, 6):
            self.space.ip(f"-{family} rule flush", f"-{family} rule add priority 32766 lookup main")
        if "br-wan" in self.space.run(["ip", "-br", "link"]).stdout:
            self.space.ip(f"link set {WAN} down", f"address flush dev {WAN}", f"link set {WAN} name {PORT}")
        self.run("rm", "-rf", *self.remembered())

    def remembered(self) -> list[str]:
        """Return the files in /tmp, without the checkout, which is not a part of the device."""
        checkout = Path("/tmp", *CHECKOUT.parts[2:]) if CHECKOUT.is_relative_to("/var") else CHECKOUT
        inside = [f"/tmp/{one.name}" for one in self.file("tmp").iterdir()]
        return [one for one in inside if not checkout.is_relative_to(one)]

    def instances(self) -> dict[str, int]:
        """Return the instances of procd, with process ids inside."""
        found: dict[str, int] = json.loads(self.run("procd", "list").stdout)
        return found

    def log(self) -> str:
        """Return the output of the instances."""
        place = self.file("tmp/procd.log")
        return place.read_text() if place.exists() else ""

    def settle(self) -> None:
        """Wait until watch and resolver have begun."""
        wait_until(lambda: "event=enforcing" in self.log() and "answers on" in self.log(), 20, "the instances' begin")

    # Probes

    def _receiver(self, family: int) -> socket.socket:
        made = self.home.socket(_FAMILY[family], socket.SOCK_DGRAM)
        made.bind((THEIRS[family], NUMBER))
        made.setblocking(False)
        return made

    def arrived(self) -> set[str]:
        """Return the words of probes that came by the uplink since the last call."""
        found = set()
        for one in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.add(one.recv(100).decode())
        return found

    def probe(self, mark: int = MARK) -> set[str]:
        """Send packets of both families: unmarked ones of a foreign process, then marked ones of the service.

        All are bound to the uplink's device. Returns those that arrived; without the service's packets
        the result is open.
        """
        self.arrived()
        found, end = set[str](), time.monotonic() + brief(3)
        while not found >= SERVICE and time.monotonic() < end:
            # Again each time: a flood may fill the queue of the neighbour that is still unresolved.
            self.space.call(send, "stranger", 0, uid=65534, gid=4711, keep_caps=True)
            self.space.call(send, "service", mark, gid=800, keep_caps=True)
            pause = time.monotonic() + 0.2
            while not found >= SERVICE and time.monotonic() < pause:
                found.update(self.arrived())
                time.sleep(0.01)
        return found

    def close(self) -> None:
        for one in self._sockets:
            one.close()
        self.run("procd", "delete", "nftpolicy", check=False)


def send(word: str, mark: int) -> None:
    """Send a packet of each family. Runs inside."""
    for family in OURS:
        with socket.socket(_FAMILY[family], socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
            one.sendto(f"{word} {family}".encode(), (THEIRS[family], NUMBER))


def flood() -> None:
    """Send packets of a foreign process until it is killed. Runs inside."""
    while True:
        send("stranger", 0)
        time.sleep(0.002)


@contextlib.contextmanager
def device() -> Iterator[Device]:
    with Namespace("device") as space, Namespace("home") as home:
        veth(space, PORT, home, "lan")
        space.ip(f"link set {PORT} down")
        home.ip(*(f"-{f} address add {THEIRS[f]}/{_LENGTH[f]} dev lan" for f in THEIRS))
        made = Device(space, home)
        try:
            yield made
        finally:
            made.close()
