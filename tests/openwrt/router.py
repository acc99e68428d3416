"""A namespace as a router: the compiled tree, busybox for all programs except nft and ip, and stand-ins."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nftpolicy.integration.openwrt import tree
from nftpolicy.policy.objects import Policy
from tests import busybox
from tests.lab.daemons import tool
from tests.lab.netns import Namespace, wait_until

ROOT, STATE, BIN, CONFIG = "/run/router", "/run/state", "/run/bin", "/run/config"  # in the namespace
FAKES = Path(__file__).with_name("fake_tools.py")


class Router:
    """`space` with a policy's tree."""

    def __init__(self, space: Namespace, policy: Policy, link_guard: bool = True) -> None:
        self.space = space
        for folder in (ROOT, BIN, CONFIG):
            space.outside(folder).mkdir(exist_ok=True)
        for name in {"sh", "busybox", *busybox.applets()} - {"ip"}:
            self._link(name, busybox.path())
        for name in ("nft", "ip"):
            self._link(name, tool(name))
        for name in ("uci", "ubus", "jsonfilter"):
            self.program(name, f'exec {sys.executable} -I -S {FAKES} {name} {CONFIG} "$@"')
        for name, text in (("network.uci", ""), ("dhcp.uci", ""), ("ubus.json", "{}")):
            space.outside(f"{CONFIG}/{name}").write_text(text)
        self.write(policy, link_guard)

    def _link(self, name: str, target: Any) -> None:
        place = self.space.outside(f"{BIN}/{name}")
        place.unlink(missing_ok=True)
        place.symlink_to(str(target))

    def program(self, name: str, body: str) -> None:
        """Put a shell script in the place of a program."""
        place = self.space.outside(f"{BIN}/{name}")
        place.unlink(missing_ok=True)
        place.write_text(f"#!{busybox.path()} sh\n{body}\n")
        place.chmod(0o755)

    def real(self, name: str) -> None:
        """Put the real program there, in place of a stand-in or of none."""
        self._link(name, tool(name))

    def write(self, policy: Policy, link_guard: bool = True) -> None:
        """Write another policy's tree, as an upgrade of the package does."""
        found = tree.build_tree(policy, link_guard)
        # An upgrade puts the guard where fw4 looks, and does not know of one that lies aside.
        for path in (tree.LINK_PATH, "usr/share/nftpolicy/guard.nft"):
            self.file(path).unlink(missing_ok=True)
        for path, one in found.items():
            self.file(path).parent.mkdir(parents=True, exist_ok=True)
            self.file(path).write_text(one.text)
            self.file(path).chmod(0o755 if one.executable else 0o644)

    def file(self, path: str) -> Path:
        return self.space.outside(f"{ROOT}/{path}")

    def state(self, name: str) -> Path:
        return self.space.outside(f"{STATE}/{name}")

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PATH": BIN, "NFTPOLICY_ROOT": ROOT, "NFTPOLICY_STATE": STATE}

    def nftpolicy(self, word: str, check: bool = True, uid: int | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command of the runner under busybox's ash."""
        return self.ash(f"{ROOT}/{tree.RUNNER_PATH}", word, check=check, uid=uid)

    def ash(self, *words: str, check: bool = True, uid: int | None = None) -> "subprocess.CompletedProcess[str]":
        argv = [str(busybox.path()), "ash", *words]
        return self.space.run(argv, check=check, env=self.environment, uid=uid, timeout=60)

    def start(self, word: str, **options: Any) -> "subprocess.Popen[Any]":
        """Start a command of the runner, and do not wait for it."""
        argv = [str(busybox.path()), "ash", f"{ROOT}/{tree.RUNNER_PATH}", word]
        return self.space.popen(argv, env=self.environment, **options)


NFTABLES, IP_RULES = (12, 7), (0, 8)  # NETLINK_NETFILTER, NFNLGRP_NFTABLES; NETLINK_ROUTE, RTNLGRP_IPV4_RULE


def subscribed(space: Namespace, protocol: int, group: int) -> bool:
    """Return True if a socket of the namespace receives this group of netlink notifications (/proc/net/netlink)."""
    sockets = [line.split() for line in Path(f"/proc/{space.pid}/net/netlink").read_text().splitlines()[1:]]
    return any(int(fields[1]) == protocol and int(fields[3], 16) >> group - 1 & 1 for fields in sockets)


def wait_for_monitors(space: Namespace) -> None:
    """Wait until `nft monitor` and `ip monitor rule` receive notifications."""
    wait_until(lambda: subscribed(space, *NFTABLES) and subscribed(space, *IP_RULES), 5, "the monitors")


def right(router: Router) -> bool:
    """Return True if the router itself reports the desired state."""
    return router.nftpolicy("check", check=False).returncode == 0
