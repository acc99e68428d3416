"""Command lines and files of the lab's real daemons. Pure, except `keypair`."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from . import addresses as at
from .netns import search_path

FOLDER = "/run/lab"  # in the tmpfs of each namespace
LEASE = f"{FOLDER}/wan.resolv"  # what the WAN's DHCP and RA say about DNS, like netifd's resolv.conf.auto
PARTS = {4: f"{FOLDER}/wan.resolv.4", 6: f"{FOLDER}/wan.resolv.6"}
STATUS = f"{FOLDER}/fastd.sock"
METHOD = "salsa2012+umac"

_DNSMASQ = [
    "dnsmasq",
    "--conf-file=/dev/null",
    "--keep-in-foreground",
    "--user=root",
    "--group=root",
    "--pid-file",
    f"--log-facility={FOLDER}/dnsmasq.log",
    "--bind-interfaces",
    "--no-hosts",
    "--cache-size=0",
    "--log-queries",
]


def tool(name: str) -> str | None:
    """Return the path of a program, system directories included; None if it is missing."""
    return shutil.which(name, path=search_path())


def dnsmasq_home(extra: Sequence[str]) -> list[str]:
    """Return DHCP, router advertisements and DNS of the home's router."""
    return [
        *_DNSMASQ,
        "--interface=br-lan",
        "--no-resolv",
        "--local=/example/",
        _record(at.WHO, at.WHO_AT_HOME),
        _record(at.VPN, at.SERVER),
        "--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,1h",
        f"--dhcp-leasefile={FOLDER}/leases",
        "--no-ping",
        "--dhcp-authoritative",  # a ping of the address would take three seconds
        f"--dhcp-option=3,{at.HOME[4]}",
        f"--dhcp-option=6,{at.HOME[4]}",
        "--enable-ra",
        "--dhcp-range=2001:db8:1::,ra-only",
        f"--dhcp-option=option6:dns-server,[{at.HOME[6]}]",
        *extra,
    ]


def dnsmasq_mesh() -> list[str]:
    """Return DNS of the mesh: another answer for one name, none for the VPN server."""
    return dnsmasq(at.GATEWAY.values(), {at.WHO: at.WHO_IN_MESH})


def dnsmasq(listen: Iterable[str], records: Mapping[str, Mapping[int, str]]) -> list[str]:
    """Return DNS on these addresses: name -> its address by family, and no other name of `example`."""
    return [
        *_DNSMASQ,
        *(f"--listen-address={address}" for address in listen),
        "--no-resolv",
        "--local=/example/",
        *(_record(name, where) for name, where in records.items()),
    ]


def dnsmasq_node() -> list[str]:
    """Return the node's own resolver, which queries the mesh."""
    return [
        *_DNSMASQ,
        "--listen-address=127.0.0.1",
        "--listen-address=::1",
        "--no-resolv",
        f"--server={at.GATEWAY[4]}",
        f"--server={at.GATEWAY[6]}",
    ]


def _record(name: str, where: Mapping[int, str]) -> str:
    return f"--host-record={name},{where[4]},{where[6]}"


def udhcpc(script: str) -> list[str]:
    """Return the DHCP client of the WAN; it also requests classless routes (option 121)."""
    own = tool("udhcpc")
    return [
        *([own] if own else ["busybox", "udhcpc"]),
        "-f",
        "-i",
        at.WAN,
        "-s",
        script,
        "-t",
        "20",
        "-T",
        "1",
        "-O",
        "staticroutes",
    ]


def udhcpc_script(table: str, metric: int, rules: bool) -> str:
    """Return the DHCP client's script: routes into one table, as netifd does with `ip4table`; DNS servers into a file.

    With `rules`, also netifd's ip rules for that table.
    """
    rule_commands = (
        f"""
    ip rule add from $ip lookup {table} priority 10000
    ip rule add to $net lookup {table} priority 20000
    ip rule add iif lo lookup {table} priority 90001"""
        if rules
        else ""
    )
    return f"""#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
set -- $(echo $ip.$subnet | tr . ' ')
net=$(($1 & $5)).$(($2 & $6)).$(($3 & $7)).$(($4 & $8))/$mask
put() {{ ip route replace "$@" dev $interface table {table} metric {metric}; }}
{{
    ip addr replace $ip/$mask brd + dev $interface noprefixroute
    put $net src $ip{rule_commands}
    for gateway in $router; do put default via $gateway src $ip; break; done
    set -- $staticroutes
    while [ $# -ge 2 ]; do put $1 via $2; shift 2; done
}} 2>>{FOLDER}/udhcpc.log
for server in $dns; do echo nameserver $server; done >{PARTS[4]}
cat {PARTS[4]} {PARTS[6]} >{LEASE}.new 2>/dev/null
mv {LEASE}.new {LEASE}
"""


def keypair() -> tuple[str, str]:
    """Return a new secret and public key of fastd."""
    fastd = tool("fastd")
    assert fastd is not None
    text = subprocess.run([fastd, "--generate-key"], capture_output=True, text=True, check=True).stdout
    secret, public = re.findall(r"[0-9a-f]{64}", text)
    return secret, public


def fastd_server(secret: str, peer: str) -> str:
    """Return the configuration of the VPN server, which knows one peer."""
    return f"""{_fastd("fastd0", secret)}
bind any:{at.FASTD_PORT};
peer "node" {{ key "{peer}"; }}
"""


def fastd_client(secret: str, peer: str, mark: int, remote: str) -> str:
    """Return the configuration of the node's VPN client; `remote` is an address or a name, `mark` 0 means none."""
    address = f"[{remote}]" if ":" in remote else remote
    where = f'"{remote}"' if re.search("[a-z]", remote) and ":" not in remote else address
    return f"""{_fastd(at.TUNNEL, secret)}
{f"packet mark {mark};" if mark else ""}
peer "server" {{ key "{peer}"; remote {where} port {at.FASTD_PORT}; }}
"""


def _fastd(interface: str, secret: str) -> str:
    return f"""log level debug;
mode tap;
interface "{interface}";
method "{METHOD}";
mtu 1312;
secret "{secret}";
status socket "{STATUS}";"""
