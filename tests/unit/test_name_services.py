"""Programs that answer for names in place of DNS: nsswitch.conf(5), and what check says of them."""

import pytest

from nftpolicy.policy.load import load
from nftpolicy.runtime.services.name_services import find_name_daemons, parse_hosts

POLICY = """\
name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["wan"]
mark = "0x1/0xff"
table = 7
[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
servers = ["192.0.2.53"]
user = 77
[service.vpn]
uplink = "wan"
group = 800
marks = "itself"
"""
STUB = "hosts: files resolve [!UNAVAIL=return] dns\n"


def messages(root, nsswitch=None, text=POLICY, nscd=False):
    (root / "etc").mkdir(exist_ok=True)
    (root / "run/nscd").mkdir(parents=True, exist_ok=True)
    if nsswitch is not None:
        (root / "etc/nsswitch.conf").write_text(nsswitch)
    if nscd:
        (root / "run/nscd/socket").touch()
    return list(find_name_daemons(load(text.encode())[0], root))


def test_hosts_are_parsed_with_their_actions():
    text = "# hosts: none\npasswd: files\nhosts:\tfiles  resolve [!UNAVAIL=return NOTFOUND=return]dns # myhostname\n"
    hosts = parse_hosts(text)
    assert hosts.line == 3
    assert hosts.sources == (("files", ""), ("resolve", "!unavail=return notfound=return"), ("dns", ""))
    assert parse_hosts("passwd: files\nhostsfoo: dns\nhosts dns\n") is None


@pytest.mark.parametrize(
    ("hosts", "reaches"),
    [
        ("files dns", True),
        ("resolve [!UNAVAIL=return] dns", True),
        ("resolve [NOTFOUND=return] dns", True),
        ("resolve [SUCCESS=return UNAVAIL=continue] dns", True),
        ("mdns4_minimal [NOTFOUND=return] dns", True),
        ("resolve [UNAVAIL=return] dns", False),
        ("resolve [!SUCCESS=return] dns", False),
        ("files resolve", False),
        ("dns [UNAVAIL=return] resolve", True),
        ("", False),
    ],
)
def test_hosts_reach_dns_without_daemons(hosts, reaches):
    assert parse_hosts(f"hosts: {hosts}").reaches_dns_without_daemons() == reaches


@pytest.mark.parametrize("nsswitch", [None, "hosts: files dns\n", "passwd: files\n", "hosts: files myhostname dns\n"])
def test_host_with_dns_only_has_no_message(tmp_path, nsswitch):
    assert messages(tmp_path, nsswitch) == []


def test_host_with_resolved_or_nscd_has_message(tmp_path):
    (resolved,) = messages(tmp_path, STUB)
    assert resolved.startswith("/etc/nsswitch.conf:1: resolve: systemd-resolved asks")
    assert "start service vpn by its drop-in ('nftpolicy units') or 'nftpolicy run'" in resolved
    (_, nscd) = messages(tmp_path, STUB, nscd=True)
    assert nscd.startswith("/run/nscd/socket: nscd answers")


def test_host_without_dns_behind_resolved_has_message(tmp_path):
    without, _ = messages(tmp_path, "\nhosts: files resolve\n")
    assert without.startswith("/etc/nsswitch.conf:2: ")
    assert "finds no name; write 'dns' behind" in without


@pytest.mark.parametrize(
    "text",
    [
        POLICY.replace('group = 800\nmarks = "itself"', 'kernel = true\nsport = ["udp/51820"]'),
        POLICY[: POLICY.index("[uplink.wan.resolver]")] + POLICY[POLICY.index("[service.vpn]") :],
    ],
    ids=["kernel", "no resolver"],
)
def test_policy_without_dns_clients_has_no_message(tmp_path, text):
    assert messages(tmp_path, STUB, text, nscd=True) == []
