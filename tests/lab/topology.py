"""Five namespaces around a guarded machine.

    neighbour --+
                +-- home ---------- server       home:   the home router, with DHCP, RA and DNS (all dnsmasq)
    node: br-wan+                     |          server: the VPN server (fastd), and all of the internet
          bat0 ------ mesh -----------+          mesh:   the mesh's gateway, with DNS that answers differently
          br-client -- client                    client: a host behind the node

The server can be reached by both, so only the sniffers show by which a packet left.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from . import addresses as at
from . import daemons, dns_message, echo_server, ra_client, wiring
from .daemons import LEASE, PARTS
from .limits import limit
from .netns import Namespace, wait_until
from .sniffer import Sniffer

TOOLS = ("ip", "nft", "dnsmasq", "fastd", "busybox", "sleep")
_MAIN = "main"
_WAN_METRIC, _MESH_METRIC = 10, 1024  # with the WAN in the main table, it wins


def missing() -> list[str]:
    """Return the requirements that this machine lacks for a lab, in words; empty if none."""
    lacks = [f"the program {name}" for name in TOOLS if daemons.tool(name) is None]
    if os.geteuid():
        lacks.append("root")
    return lacks


class Lab:
    """Whole topology; a context manager, ready for packets when it is entered.

    `wan` is "table" (all routes of the WAN in `table`, as OpenWrt's ip4table and ip6table do) or "main" (in the
    main table, where they win over the mesh's). `bridge` makes br-wan a bridge with the port eth-wan. `netifd_rules`
    adds the ip rules that OpenWrt's netifd makes for such a table. `home_options` are more arguments for the home's
    dnsmasq, as an attacker would use them. `groups` (name -> gid) are what the node's /etc/group has besides root.

    Namespaces: `home`, `neighbour`, `server`, `mesh`, `client`, `node`. Sniffers: `wan` sees what the node sends to
    the home, `mesh_sniffer` what it sends to the mesh. `wan_lease` is a file in the node, in the form of resolv.conf.

    Raises ValueError for another `wan`, OSError or subprocess.SubprocessError if a part cannot be built,
    TimeoutError if a daemon does not come up.
    """

    wan_lease = LEASE

    def __init__(
        self,
        bridge: bool = False,
        wan: str = "table",
        netifd_rules: bool = False,
        home_options: Sequence[str] = (),
        groups: Mapping[str, int] | None = None,
        table: int = 1,
    ) -> None:
        if wan not in ("table", "main"):
            raise ValueError(f'wan is "table" or "main", not {wan!r}')
        self.wan_table = {"table": str(table), "main": _MAIN}[wan]
        self.wan_port = at.WAN_PORT if bridge else at.WAN  # the device that frames leave by at last
        self._rules = netifd_rules
        self._home_options = home_options
        self._groups = dict(groups or {})
        self._udhcpc: Any = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Lab":
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything. Can be called twice."""
        self._stack.close()

    # Switches

    def wan_up(self) -> None:
        """Set the WAN device up and configure it by DHCP and RA, as netifd does after a link has come back."""
        self.node.ip(f"link set {at.WAN} up")
        self.node.outside(LEASE).unlink(missing_ok=True)
        self.node.outside(PARTS[6]).write_text("")
        self._stop_udhcpc()
        self._udhcpc = self.node.popen(daemons.udhcpc(self._script))
        wait_until(self.lease, 10, "DHCP on the WAN")  # before RA, as both write the lease file
        self._router_advertisement()

    def renew_lease(self) -> None:
        """Make the DHCP client of the WAN renew its lease now."""
        self._udhcpc.send_signal(signal.SIGUSR1)

    def wan_down(self) -> None:
        """Take the WAN device down: the kernel drops its routes and IPv6 addresses, and the DHCP client ends."""
        self._stop_udhcpc()
        self.node.ip(f"link set {at.WAN} down")

    def mesh_up(self) -> None:
        """Set the mesh device up, with addresses and default routes."""
        addresses = (
            f"addr replace {at.with_length(at.NODE_MESH, 'mesh', family)} dev {at.MESH}" for family in at.FAMILIES
        )
        self.node.ip(f"link set {at.MESH} up", *addresses)
        self.mesh_default(True)

    def mesh_down(self) -> None:
        """Take the mesh device down; its routes go with it."""
        self.node.ip(f"link set {at.MESH} down")

    def mesh_default(self, present: bool) -> None:
        """Put the default routes by the mesh into the main table, or take them out (an error if there are none)."""
        verb = "replace" if present else "del"
        self.node.ip(
            *(
                f"-{family} route {verb} default via {at.GATEWAY[family]} dev {at.MESH} metric {_MESH_METRIC}"
                for family in at.FAMILIES
            )
        )

    # Questions

    def lease(self) -> str:
        """Return the text of `wan_lease`; empty until it exists."""
        try:
            return self.node.outside(LEASE).read_text()
        except FileNotFoundError:
            return ""

    def wan_address(self, family: int) -> str | None:
        """Return the node's global address on the WAN; None without one."""
        return self._address(at.WAN, family)

    def resolve(
        self,
        name: str,
        family: int,
        server: str,
        tcp: bool = False,
        gid: int | None = None,
        uid: int | None = None,
        port: int = 53,
        seconds: float = 1.0,
    ) -> list[str] | str:
        """Ask a DNS server for a name from inside the node, with these ids; see `dns.ask` for the answer."""
        answer: list[str] | str = self.node.call(
            dns_message.ask, server, name, family, port, tcp, seconds, uid=uid, gid=gid, timeout=max(30, seconds + 5)
        )
        return answer

    def start_fastd_client(self, group_gid: int, mark: int = 1, remote: str = at.SERVER[4]) -> None:
        """Start the node's VPN client with this group and mark; `remote` is an address or a name of the server."""
        text = daemons.fastd_client(self._client_keys[0], self._server_keys[1], mark, remote)
        self._start_fastd(self.node, text, group_gid)

    def daemon(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a daemon in the node that is ended by SIGTERM, so that it can tidy up, before the lab is."""
        process = self.node.popen(argv, **options)
        self._stack.callback(_end, process)
        return process

    def server_fastd_peers(self) -> dict[str, dict[str, Any]]:
        """Return the peers that are connected to the VPN server now: key -> status by fastd, with the address."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.server.outside(daemons.STATUS)))
            with channel.makefile() as text:
                peers = json.load(text)["peers"]
        return {key: peer for key, peer in peers.items() if peer["connection"]}

    def wait_for_fastd(self, seconds: float = 10) -> dict[str, dict[str, Any]]:
        """Wait until the VPN client is connected; its peers as above, or TimeoutError."""
        peers: dict[str, dict[str, Any]] = wait_until(self.server_fastd_peers, seconds, "a connection of fastd")
        return peers

    # Building

    def _build(self) -> None:
        self._make_namespaces()
        wiring.wire(self._spaces, self.wan_port)
        self._start_daemons()
        self.mesh_up()
        script = daemons.udhcpc_script(self.wan_table, _WAN_METRIC, self._rules)
        self._script = f"{daemons.FOLDER}/udhcpc.sh"
        self.node.outside(self._script).write_text(script)
        self.node.outside(self._script).chmod(0o755)
        self.wan = self._stack.enter_context(Sniffer(self.home, "lan-node"))
        self.mesh_sniffer = self._stack.enter_context(Sniffer(self.mesh, "to-node"))
        self.wan_up()
        expected = [at.WHO_IN_MESH[4]]
        wait_until(lambda: self.resolve(at.WHO, 4, "127.0.0.1", seconds=0.2) == expected, 5, "DNS of the mesh")

    def _make_namespaces(self) -> None:
        def new(name: str, etc: Mapping[str, str] | None = None) -> Namespace:
            return self._stack.enter_context(Namespace(name, etc))

        resolv = "nameserver 127.0.0.1\nnameserver ::1\n"
        group = "root:x:0:\nnogroup:x:65534:\n" + "".join(f"{name}:x:{gid}:\n" for name, gid in self._groups.items())
        self.home, self.neighbour, self.server = new("home"), new("neighbour"), new("server")
        self.mesh, self.client = new("mesh"), new("client")
        self.node = new("node", {"resolv.conf": resolv, "group": group, "nsswitch.conf": "hosts: files dns\n"})
        self._spaces = {
            space.name: space for space in (self.home, self.neighbour, self.server, self.mesh, self.client, self.node)
        }

    def _start_daemons(self) -> None:
        self.home.popen(daemons.dnsmasq_home(self._home_options))
        self.mesh.popen(daemons.dnsmasq_mesh())
        self.node.popen(daemons.dnsmasq_node())
        self._server_keys, self._client_keys = daemons.keypair(), daemons.keypair()
        self._start_fastd(self.server, daemons.fastd_server(self._server_keys[0], self._client_keys[1]), 0)
        self.server.spawn(echo_server.serve, at.ECHO_PORT)

    def _start_fastd(self, space: Namespace, text: str, gid: int) -> None:
        path = f"{daemons.FOLDER}/fastd.conf"
        space.outside(path).write_text(text)
        with space.outside(f"{daemons.FOLDER}/fastd.log").open("a") as log:
            space.popen(["fastd", "--config", path], gid=gid, stderr=log)

    def _router_advertisement(self) -> None:
        seen: ra_client.Advertisement = self.node.call(ra_client.solicit, at.WAN)
        self.node.outside(PARTS[6]).write_text("".join(f"nameserver {server}\n" for server in seen.servers))
        for command in ra_client.commands(at.WAN, at.NODE_WAN_MAC, seen, self.wan_table, _WAN_METRIC, self._rules):
            self.node.run(["ip", *command.split()], check=" rule " not in command)  # a rule may be there already
        fresh = self.node.outside(f"{LEASE}.new")
        fresh.write_text("".join(self.node.outside(part).read_text() for part in PARTS.values()))
        fresh.replace(self.node.outside(LEASE))

    def _stop_udhcpc(self) -> None:
        if self._udhcpc:
            self._udhcpc.kill()
            self._udhcpc.wait()

    def _address(self, device: str, family: int) -> str | None:
        text = self.node.run(["ip", "-j", f"-{family}", "addr", "show", "dev", device, "scope", "global"]).stdout
        found = [entry["local"] for link in json.loads(text) for entry in link.get("addr_info", []) if entry]
        return found[0] if found else None


def _end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(limit(5))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
