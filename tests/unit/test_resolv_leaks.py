"""Resolver files of a host that give an uplink's DNS servers to every process."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftpolicy.policy.load import load
from nftpolicy.runtime.resolver.resolv_files import LeakWatcher, find_host_leaks
from nftpolicy.runtime.resolver.resolv_leaks import UplinkDns, find_leaks
from tests.test_manual import MINIMAL

LEARNED = UplinkDns({"br-wan": "wan", "wwan0": "lte"}, {"br-wan": 7}, {ip_address("192.0.2.1"): "wan"})
POLICY = load(MINIMAL.encode())[0]
NETWORK = "/etc/systemd/network/10-wan.network"
OFF = (
    "[Match]\nName=br-wan\n[Network]\nDHCP=yes\n[DHCPv4]\nUseDNS=no\n[DHCPv6]\nUseDNS=0\n[IPv6AcceptRA]\nUseDNS=false\n"
)
NM = "/etc/NetworkManager/system-connections/wan.nmconnection"
UUID = "6a5cf5b8-6d5b-4b5c-8c5e-1b2b3b4b5b6b"
IGNORED = "[connection]\ninterface-name=br-wan\n[ipv4]\nmethod=auto\nignore-auto-dns=true\n[ipv6]\nmethod=disabled\n"
UCI = """
config interface 'loopback'
	option device 'lo'
	option proto 'static'

config interface 'wan'
	option device 'br-wan'
	option proto 'dhcp'
	option peerdns '0'

config interface "wan6"
	option device @wan
	option proto dhcpv6
	option peerdns 0
"""

# Files, and where the leaks are (with a word of what is told); none for a machine that is as it should be.
CASES = {
    "resolv.conf": ({"/etc/resolv.conf": "nameserver 127.0.0.1\n nameserver 192.0.2.1 # dhcp\n"}, [("/etc/resolv.conf:2", "'wan'")]),
    "resolv.conf of another server": ({"/etc/resolv.conf": "#nameserver 192.0.2.1\nnameserver 192.0.2.11\nsearch 192.0.2.1"}, []),
    "resolv.conf by zone": ({"/etc/resolv.conf": "nameserver fe80::9%br-wan"}, [("/etc/resolv.conf:1", "'wan'")]),
    "resolv.conf by number": ({"/run/systemd/resolve/resolv.conf": "nameserver fe80::9%7"}, [("/run/systemd/resolve/resolv.conf:1", "'wan'")]),
    "resolvconf": ({"/run/resolvconf/interface/br-wan.dhclient": "domain lan\nnameserver 192.0.2.77"},
                   [("/run/resolvconf/interface/br-wan.dhclient:2", "resolvconf -d br-wan.dhclient")]),
    "resolvconf of another device": ({"/run/resolvconf/interfaces/br-wan2": "nameserver 192.0.2.77"}, []),
    "dnsmasq server": ({"/etc/dnsmasq.conf": "no-resolv\nserver=/lan/192.0.2.1#53\nserver=203.0.113.1"}, [("/etc/dnsmasq.conf:2", "remove the line")]),
    "dnsmasq server by device": ({"/etc/dnsmasq.d/x": "no-resolv\nserver=9.9.9.9@wwan0"}, [("/etc/dnsmasq.d/x:2", "'lte'")]),
    "dnsmasq resolv-file": ({"/etc/dnsmasq.conf": "resolv-file=/run/x", "/run/x": "\nnameserver 192.0.2.1"}, [("/etc/dnsmasq.conf:1", "/run/x:2 names")]),
    "dnsmasq reads resolv.conf": ({"/etc/dnsmasq.conf": "#no-resolv\n", "/etc/resolv.conf": "nameserver 192.0.2.1"},
                                  [("/etc/resolv.conf:1", "'wan'"), ("/etc/dnsmasq.conf", "no-resolv")]),
    "dnsmasq is kept from it": ({"/etc/dnsmasq.conf": "no-resolv # ours\nserver=203.0.113.1\n#server=192.0.2.1"}, []),
    "dnsmasq of OpenWrt": ({"/var/etc/dnsmasq.conf.cfg01411c": "resolv-file=/tmp/auto", "/tmp/auto": "# Interface wan\nnameserver 192.0.2.1"},
                           [("/var/etc/dnsmasq.conf.cfg01411c:1", "/tmp/auto:2 names")]),
    "networkd": ({NETWORK: OFF}, []),
    "networkd uses DHCPv4's": ({NETWORK: OFF.replace("UseDNS=no", "")}, [(NETWORK, "UseDNS=no into [DHCPv4]")]),
    "networkd uses RA's": ({NETWORK: "[Match]\nName=br-*\n[Network]\nAddress=192.0.2.5/24\n"}, [(NETWORK, "into [IPv6AcceptRA]")]),
    "networkd asks nobody": ({NETWORK: "[Match]\nName=br-wan\n[Network]\nIPv6AcceptRA=no\n"}, []),
    "networkd static": ({NETWORK: OFF.replace("DHCP=yes", "DHCP=yes\nDNS=192.0.2.53")}, [(f"{NETWORK}:5", "DNS=192.0.2.53")]),
    "networkd old section": ({NETWORK: "[Match]\nName=eth0 br-wan\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n[DHCP]\nUseDNS=no\n"}, []),
    "networkd another device": ({NETWORK: "[Match]\nName=!br-wan wwan0\n[Network]\nDHCP=yes\n"}, []),
    "networkd unmanaged": ({NETWORK: "[Match]\nName=br-wan\n[Link]\nUnmanaged=yes\n[Network]\nDHCP=yes\n"}, []),
    "networkd first file": ({NETWORK: OFF, "/run/systemd/network/50-all.network": "[Match]\nName=br-wan\n[Network]\nDHCP=yes"}, []),
    "networkd same name": ({NETWORK: OFF, "/usr/lib/systemd/network/10-wan.network": "[Match]\nName=br-wan\n[Network]\nDHCP=yes"}, []),
    "networkd drop-in": ({NETWORK: "[Match]\nName=br-wan\n[Network]\nDHCP=ipv6\nIPv6AcceptRA=no\n",
                          f"{NETWORK}.d/dns.conf": "[DHCPv6]\nUseDNS=no\n"}, []),
    "NetworkManager": ({NM: IGNORED}, []),
    "NetworkManager uses them": ({NM: IGNORED.replace("true", "false")}, [(NM, "into [ipv4]")]),
    "NetworkManager static": ({NM: IGNORED + "[ipv4]\ndns=192.0.2.1;\n"}, [(NM, "no dns=")]),
    "NetworkManager in use": ({NM: f"[connection]\nuuid={UUID}\n", "/run/NetworkManager/devices/7": f"[device]\nconnection-uuid={UUID}\n"},
                              [(NM, "[ipv4] and [ipv6]")]),
    "NetworkManager another connection": ({NM: f"[connection]\nuuid={UUID}\n"}, []),
    "NetworkManager keeps out": ({NM: "[connection]\ninterface-name=br-wan\n", "/etc/NetworkManager/conf.d/90.conf": "[main]\ndns=none\n",
                                  "/etc/NetworkManager/NetworkManager.conf": "[main]\ndns=default\n"}, []),
    "netifd": ({"/etc/config/network": UCI}, []),
    "netifd peerdns": ({"/etc/config/network": UCI.replace("	option peerdns '0'\n", "")}, [("/etc/config/network:6", "peerdns '0'")]),
    "netifd by alias": ({"/etc/config/network": UCI.replace("	option peerdns 0\n", "")}, [("/etc/config/network:11", "'wan6'")]),
    "netifd static": ({"/etc/config/network": UCI.replace("'dhcp'\n", "'dhcp'\n\tlist dns '192.0.2.1'\n")}, [("/etc/config/network:9", "192.0.2.1")]),
    "netifd circle": ({"/etc/config/network": "config interface a\n option device @b\nconfig interface b\n option device @a\n"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_leaking_resolver_files_are_reported(name: str) -> None:
    texts, expected = CASES[name]
    leaks = find_leaks(texts, LEARNED)
    assert [str(one).partition(": ")[0] for one in leaks] == [place for place, _ in expected], leaks
    for one, (_, word) in zip(leaks, expected, strict=True):
        assert word in str(one)
        assert "\n" not in str(one)


@given(st.data())
def test_damaged_resolver_files_are_accepted(data: st.DataObject) -> None:
    texts = dict(data.draw(st.sampled_from(list(CASES.values())))[0])
    for path in texts:
        text = texts[path]
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(text)))
            text = text[:at] + data.draw(st.text(max_size=5)) + text[at + data.draw(st.integers(0, 9)) :]
        texts[path] = text
    for one in find_leaks(texts, LEARNED):
        assert one.file in texts


def machine(root: Path, resolv: str) -> None:
    for path, text in (("etc/resolv.conf", resolv), ("run/nftpolicy/udhcpc/br-wan", "nameserver 192.0.2.1\n")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_host_leaks_follow_included_files(tmp_path: Path) -> None:
    assert find_host_leaks(POLICY, tmp_path) == []
    machine(tmp_path, "nameserver 192.0.2.1\n")
    (one,) = find_host_leaks(POLICY, tmp_path)
    assert (one.file, one.line) == ("/etc/resolv.conf", 1)
    (tmp_path / "etc/dnsmasq.conf").write_text("resolv-file=/run/deep/x\n")
    (tmp_path / "run/deep").mkdir()
    (tmp_path / "run/deep/x").write_text("nameserver 192.0.2.1\n")
    assert [one.file for one in find_host_leaks(POLICY, tmp_path)] == ["/etc/resolv.conf", "/etc/dnsmasq.conf"]
    (tmp_path / "etc/resolv.conf").unlink()
    (tmp_path / "etc/resolv.conf").symlink_to("resolv.conf")  # a circle
    (tmp_path / "etc/dnsmasq.d").mkdir()
    (tmp_path / "etc/dnsmasq.d/folder").mkdir()
    assert [one.file for one in find_host_leaks(POLICY, tmp_path)] == ["/etc/dnsmasq.conf"]


def test_leak_is_reported_at_appearance_and_disappearance(tmp_path: Path) -> None:
    watcher = LeakWatcher(tmp_path)
    machine(tmp_path, "nameserver 127.0.0.1\n")
    assert list(watcher.changes(POLICY)) == []
    machine(tmp_path, "nameserver 127.0.0.1\nnameserver 192.0.2.1\n")
    (leaks,) = watcher.changes(POLICY)
    assert (leaks["state"], leaks["place"]) == ("appeared", "/etc/resolv.conf:2")
    assert list(watcher.changes(POLICY)) == []
    (tmp_path / "etc/resolv.conf").touch()
    assert list(watcher.changes(POLICY)) == []
    (tmp_path / "run/nftpolicy/udhcpc/br-wan").unlink()  # it is nobody's server any more
    (leaks,) = watcher.changes(POLICY)
    assert (leaks["state"], leaks["place"]) == ("gone", "/etc/resolv.conf:2")
    machine(tmp_path, "nameserver 192.0.2.1\n")
    assert [one["state"] for one in watcher.changes(POLICY)] == ["appeared"]
    assert [one["state"] for one in watcher.changes(None)] == ["gone"]
    assert list(watcher.changes(None)) == []
