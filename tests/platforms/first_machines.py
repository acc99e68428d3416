"""Machines on which the ways begin: a laptop, a server and a mesh node, with their networks and VPN programs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.beside.machine import _BOOTED
from tests.beside.outside import MACHINE, Outside
from tests.beside.vpn import wireguard_server
from tests.lab import addresses as at
from tests.lab import daemons

BOOT = """
mkdir -p dev/net
mknod dev/net/tun c 10 200
mount -o remount,bind,ro sys  # so network managers know that no udev will come
"""
FIRST_BOOT = (
    BOOT
    + """
rm -f usr/sbin/policy-rc.d etc/resolv.conf
for one in systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service \\
    systemd-modules-load.service ifupdown-pre.service; do
    ln -sf /dev/null etc/systemd/system/$one
done
mkdir -p etc/systemd/system/multi-user.target.wants
ln -sf ../booted.service etc/systemd/system/multi-user.target.wants/booted.service
echo nameserver 192.0.2.1 >etc/resolv.conf
echo machine >etc/hostname
echo 127.0.0.1 localhost machine >etc/hosts
"""
)
_DHCP = "auto lo\\niface lo inet loopback\\nauto eth0\\niface eth0 inet dhcp\\n".replace("\\n", "\n")
_LOOPBACK = "auto lo\niface lo inet loopback\n"
_STATIC = f"""[Match]
Name=eth0

[Network]
Address={MACHINE[4]}/24
Gateway=192.0.2.1
"""
_GO = "[Service]\nEnvironment=WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go\n"
_ENABLE = "ln -sf /lib/systemd/system/{} etc/systemd/system/multi-user.target.wants/{}\n"


@dataclass(frozen=True)
class Way:
    """Machine, its job as a command and what its output matches, and the command that drafts its policy."""

    name: str
    job: str
    works: str
    unit: str = ""  # of its program
    reached: str = ""  # command at the uplink's far end that must print "SSH" while the policy is in force
    init: str = "nftpolicy init"
    files: Mapping[str, str] = field(default_factory=dict)
    prepare: str = ""
    serve: Callable[[Outside], Mapping[str, str]] = lambda _: {}


def _wireguard(around: Outside) -> Mapping[str, str]:
    """Return a provider's file, without a name server: a fresh Debian has no resolvconf."""
    return {name: text.replace("DNS = 10.77.0.1\n", "") for name, text in wireguard_server(around).items()}


def _fastd(around: Outside) -> Mapping[str, str]:
    """Start fastd at vpn.example; return the configuration of the node."""
    (server_secret, server), (secret, public) = daemons.keypair(), daemons.keypair()
    texts = {
        "server": daemons.fastd_server(server_secret, public).replace(at.TUNNEL, "fastd0"),
        "node": daemons.fastd_client(secret, server, 0, "vpn.example"),
    }
    for name, address in (("server", "10.88.0.1"), ("node", "10.88.0.2")):
        up = f'on up "ip addr add {address}/24 dev $INTERFACE; ip link set $INTERFACE up";\n'
        texts[name] = "\n".join(line for line in texts[name].splitlines() if "status socket" not in line) + f"\n{up}"
    around.internet.outside(f"{daemons.FOLDER}/fastd.conf").write_text(texts["server"])
    around.internet.popen(["fastd", "--config", f"{daemons.FOLDER}/fastd.conf"])
    around.internet.popen([*daemons.dnsmasq(["198.51.100.1"], {}), "--host-record=vpn.example,198.51.100.1"])
    return {"etc/fastd/mesh/fastd.conf": texts["node"]}


_BASE = {"etc/systemd/system/booted.service": _BOOTED}
WAYS = (
    Way(
        name="laptop",
        job="curl -s -m 3 http://10.77.0.1/",
        works=r"^seen 10\.77\.0\.2$",
        unit="wg-quick@wg0",
        files={**_BASE, "etc/network/interfaces": _DHCP, "etc/systemd/system/wg-quick@.service.d/go.conf": _GO},
        prepare="chmod 600 etc/wireguard/*\n" + _ENABLE.format("wg-quick@.service", "wg-quick@wg0.service"),
        serve=_wireguard,
    ),
    Way(
        name="server",
        job="ss -Htln sport = 22",
        works=":22",
        reached=f"socat -T5 - TCP:{MACHINE[4]}:22",
        files={**_BASE, "etc/network/interfaces": _LOOPBACK, "etc/systemd/network/10-static.network": _STATIC},
        prepare=_ENABLE.format("systemd-networkd.service", "systemd-networkd.service"),
    ),
    Way(
        name="mesh node",
        job="curl -s -m 3 http://10.88.0.1/",
        works=r"^seen 10\.88\.0\.2$",
        unit="fastd@mesh",
        files={**_BASE, "etc/network/interfaces": _DHCP},
        prepare=_ENABLE.format("fastd@.service", "fastd@mesh.service"),
        serve=_fastd,
    ),
)
