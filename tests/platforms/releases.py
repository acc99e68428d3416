"""Root directories of Debian releases: a fresh one, and one with what builds and tests nftpolicy."""

import platform
from collections.abc import Sequence
from pathlib import Path

from tests.beside import debian_root

RELEASES = ("bookworm", "trixie")
# What script/package and the tests need, beside the packages of script/setup.
_TOOLS = ["build-essential", "debhelper", "dh-python", "pybuild-plugin-pyproject", "python3-all", "python3-hatchling"]
_TOOLS += ["python3-attr", "python3-cattr", "python3-pyroute2", "python3-rich", "python3-typer", "python3-nftables"]
_TOOLS += [
    "python3-pytest",
    "python3-pytest-xdist",
    "python3-hypothesis",
    "ca-certificates",
    "git",
    "iputils-ping",
    "kmod",
    "procps",
]
_SETUP = ["busybox", "dnsmasq-base", "fastd", "gcc", "ifupdown", "iproute2", "iptables", "libc6-dev", "lua5.1", "make"]
_SETUP += ["mandoc", "musl-tools", "netbase", "nftables", "ntpsec-ntpdig", "openssl", "openvpn", "shellcheck", "socat"]
_SETUP += ["systemd", "wireguard-go", "wireguard-tools"]
# Programs whose packets nftpolicy guards; a fresh machine of the three ways has them already.
_PRESENT = ["wireguard-tools", "wireguard-go", "fastd", "openssh-server", "dbus", "curl", "ca-certificates"]


def fresh(cache: Path, release: str, mirror: str | None) -> Path:
    """Return the root directory that debootstrap makes, with programs that nftpolicy serves, and without nftpolicy."""
    return debian_root.debian_root(cache / "fresh", _PRESENT, mirror, release, [])


def tools(cache: Path, release: str, mirror: str | None) -> Path:
    """Return a root directory that can build and test nftpolicy."""
    return debian_root.debian_root(cache / "tools", _TOOLS + _SETUP, mirror, release, [])


def versions(root: Path) -> Sequence[str]:
    """Return the versions of Debian, the running kernel, nft, Python and systemd."""
    packages = debian_root.versions(root, ["nftables", "python3", "systemd"])
    debian = (root / "etc/debian_version").read_text().strip()
    short = [packages[name].split("-")[0].rpartition(":")[2] for name in ("nftables", "python3", "systemd")]
    return debian, platform.release(), *short
