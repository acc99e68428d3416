"""Files of `nftpolicy netconfig`: contents, second runs, refusals, in temporary directories."""

import configparser
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.cli import install, uninstall, units
from nftpolicy.cli import netconfig as command
from nftpolicy.cli.common import Failure
from nftpolicy.integration.netconfig.registry import PROGRAMS, netconfig_files, render_files
from nftpolicy.policy.load import load
from tests.guarded_lab import ROOT

GLUON = ROOT / "rulesets" / "gluon-fastd.toml"
TWO = ROOT / "tests/golden/03-two-uplinks/policy.toml"


def policy(file=TWO):
    return load(file.read_bytes())[0]


def write(to, program="networkd", file=GLUON, force=False):
    command.command(command.Program(program), file, to, force)


def written(root):
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_files_name_each_device_and_its_table(program):
    text = render_files(netconfig_files(policy(), program))
    for uplink in policy().uplink.values():
        for device in uplink.devices:
            assert device in text
        assert str(uplink.table) in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_second_run_writes_nothing_and_uninstall_removes_all(program, tmp_path, capsys):
    for _ in range(2):
        write(tmp_path, program)
    assert capsys.readouterr().out.splitlines()[-1] == "all files are up to date already"
    files = written(tmp_path)
    for one in netconfig_files(policy(GLUON), program):
        path = files.pop(one.path.lstrip("/"))
        assert path.read_text() == one.text
        assert stat.S_IMODE(path.stat().st_mode) == one.mode
    # /var of OpenWrt is a link, to memory.
    kept = "etc/nftpolicy/kept" if program == "netifd" else "var/lib/nftpolicy"
    assert list(files) == [f"{kept}/installed.json"]
    uninstall.command(tmp_path, False, None)
    assert written(tmp_path) == {}


def test_foreign_file_is_kept_and_nothing_is_written(tmp_path):
    theirs = tmp_path / "etc/systemd/networkd.conf.d/nftpolicy.conf"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Network]\n")
    with pytest.raises(
        Failure, match=r"nftpolicy\.conf: not written by nftpolicy, or changed since; nothing was written"
    ):
        write(tmp_path)
    assert list(written(tmp_path).values()) == [theirs]
    write(tmp_path, force=True)
    assert "ManageForeignRoutes=no" in theirs.read_text()


def test_changed_file_is_kept_and_outdated_file_is_replaced(tmp_path):
    write(tmp_path)
    write(tmp_path, file=TWO)  # another policy: ours is replaced
    conf = tmp_path / "etc/systemd/networkd.conf.d/nftpolicy.conf"
    conf.write_text(f"{conf.read_text()}# mine\n")
    with pytest.raises(Failure, match="nothing was written"):
        write(tmp_path)


def test_bad_input_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="is not a directory"):
        write(tmp_path / "file")
    with pytest.raises(Failure, match="cannot be read"):
        write(tmp_path, file=tmp_path / "absent.toml")
    run = [sys.executable, "-m", "nftpolicy", "netconfig", GLUON]
    for words in ([], ["--for", "nothing"]):
        result = subprocess.run([*run, *words], capture_output=True, text=True, cwd=ROOT, check=False)
        assert result.returncode == 2
        assert "--for" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make what even root can't write")
def test_unwritable_directory_is_reported():
    with pytest.raises(Failure, match="/proc/"):
        write(Path("/proc/self"))


def parsed(text):
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=True)
    found.optionxform = str
    found.read_string(text)
    return found


@pytest.mark.parametrize("program", ["networkd", "networkmanager"])
def test_ini_files_are_valid(program):
    for one in netconfig_files(policy(), program):
        if one.path.endswith((".conf", ".network", ".nmconnection")):
            assert parsed(one.text).sections()


def test_networkmanager_profile_has_table_and_no_dns():
    files = {Path(one.path).name: one for one in netconfig_files(policy(GLUON), "networkmanager")}
    profile = parsed(files["nftpolicy-br-wan.nmconnection"].text)
    for family in ("ipv4", "ipv6"):
        assert dict(profile[family]).items() >= {"route-table": "1", "ignore-auto-dns": "true"}.items()
    assert files["nftpolicy-br-wan.nmconnection"].mode == 0o600  # others are not read by it
    assert parsed(files["nftpolicy.conf"].text)["connection-nftpolicy-br-wan"]["ipv4.route-table"] == "1"


@pytest.mark.parametrize(
    ("resolver", "file"),
    [
        ("", "servers=''"),
        ("[uplink.wan.resolver]\n", "servers=/run/nftpolicy/wan.dns"),
        ('[uplink.wan.resolver]\nlease = "/run/nftpolicy/it\'s.dns"\n', "servers='/run/nftpolicy/it'\"'\"'s.dns'"),
        ('[uplink.wan.resolver]\nlease = "/var/lib/dhcp/dhclient.leases"\n', "servers=''"),
        ('[uplink.wan.resolver]\nservers = ["192.0.2.1"]\n', "servers=''"),
        ('[uplink.wan.resolver]\nsources = ["dhclient"]\n', "servers=''"),
    ],
)
def test_hooks_write_the_lease_file_of_the_resolver(resolver, file):
    text = f'name = "p"\ninside = []\n[uplink.wan]\ndevices = ["a.b@c"]\nmark = "1/1"\ntable = 5\n{resolver}'
    assert f"    a.b@c) table=5 {file} ;;" in render_files(netconfig_files(load(text.encode())[0], "dhclient"))


# --- networkd beside files of the administrator ----------------------------------------------------


def networkd_files(tmp_path, name, text, directory="etc"):
    path = tmp_path / directory / "systemd/network" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    write(tmp_path)
    return written(tmp_path)


STATIC = """[Match]
Name=br-wan
[Network]
Address=192.0.2.9/24
Address=192.0.2.10/32
Gateway=192.0.2.1
[Route]
Destination=198.51.100.0/24
Gateway=192.0.2.2
[Route]
Destination=203.0.113.0/24
Gateway=192.0.2.2
Table=9
"""


@pytest.mark.parametrize("directory", ["etc", "run"])
def test_networkd_file_of_admin_gets_dropin(tmp_path, directory):
    files = networkd_files(tmp_path, "10-netplan-br-wan.network", STATIC, directory)
    assert "etc/systemd/network/05-nftpolicy-br-wan.network" not in files
    assert files[f"{directory}/systemd/network/10-netplan-br-wan.network"].read_text() == STATIC
    text = files["etc/systemd/network/10-netplan-br-wan.network.d/nftpolicy.conf"].read_text()
    assert "[Match]" not in text and "DHCP=" not in text
    routes = [block.splitlines() for block in text.split("[Route]\n")[1:]]
    assert [[line for line in block if "=" in line] for block in routes] == [
        ["Destination=192.0.2.0/24", "Scope=link", "Table=1"],
        ["Gateway=192.0.2.1", "Table=1"],
        ["Destination=198.51.100.0/24", "Gateway=192.0.2.2", "Table=1"],
    ]


def test_networkd_dropin_takes_place_of_own_file(tmp_path, capsys):
    write(tmp_path)
    files = networkd_files(tmp_path, "20-wan.network", "[Match]\nName=br-wan\n[Network]\nDHCP=yes\n")
    assert "etc/systemd/network/05-nftpolicy-br-wan.network" not in files
    assert f"removed {tmp_path}/etc/systemd/network/05-nftpolicy-br-wan.network" in capsys.readouterr().out
    uninstall.command(tmp_path, True, None)
    assert list(written(tmp_path)) == ["etc/systemd/network/20-wan.network"]


@pytest.mark.parametrize("match", ["Name=br-*", "Name=br-wan eth9", "Name=!eth9", "Type=bridge", "Name=*"])
def test_networkd_file_of_several_devices_is_refused(tmp_path, match):
    with pytest.raises(Failure, match=r"10-all\.network: it configures br-wan, or may"):
        networkd_files(tmp_path, "10-all.network", f"[Match]\n{match}\n[Network]\nDHCP=yes\n")
    assert list(written(tmp_path)) == ["etc/systemd/network/10-all.network"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[Match]\nName=eth9\n",
        "[Match]\nName=!br-*\n",
        "[Network]\nDHCP=yes\n",
        "[Match]\nName=br-wan\nName=\nName=eth9\n",
    ],
)
def test_networkd_file_of_other_devices_is_ignored(tmp_path, text):
    files = networkd_files(tmp_path, "00-other.network", text)
    assert "etc/systemd/network/05-nftpolicy-br-wan.network" in files


def test_networkd_first_of_two_files_decides(tmp_path):
    (tmp_path / "etc/systemd/network").mkdir(parents=True)
    (tmp_path / "etc/systemd/network/90-all.network").write_text("[Match]\nName=*\n")
    files = networkd_files(tmp_path, "10-wan.network", "[Match]\nName=br-wan\nMACAddress=02:00:00:00:00:01\n")
    assert "etc/systemd/network/10-wan.network.d/nftpolicy.conf" in files


# --- a policy that has lost an uplink --------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "device_file"),
    [
        ("networkd", "etc/systemd/network/05-nftpolicy-wwan0.network"),
        ("networkmanager", "etc/NetworkManager/system-connections/nftpolicy-wwan0.nmconnection"),
    ],
)
def test_install_removes_files_of_lost_uplink(tmp_path, program, device_file, capsys):
    text = TWO.read_text()
    two, one = tmp_path / "two.toml", tmp_path / "one.toml"
    two.write_text(text)
    one.write_text(GLUON.read_text())
    root = tmp_path / "root"
    root.mkdir()
    write(root, program, two)
    units.command(two, Path("/etc/systemd/system"), None, root, "/usr/bin/nftpolicy", None, False)
    lost = {device_file, *(name for name in written(root) if name.endswith(".service.d/nftpolicy.conf"))}
    kept = root / "etc/systemd/network/05-nftpolicy-eth0.network"
    if program == "networkd":
        kept.write_text("[Match]\nName=eth0\n")  # changed by the administrator
    assert len(lost) > 1 and lost <= set(written(root))
    install.command(two, root, None, "/usr/bin/nftpolicy", "/usr/sbin/nft", False, False, None)
    assert lost <= set(written(root))
    install.command(one, root, None, "/usr/bin/nftpolicy", "/usr/sbin/nft", True, False, None)
    assert not lost & set(written(root))
    assert all(f"removed {root}/{name}" in capsys.readouterr().out for name in [device_file])
    assert kept.exists() == (program == "networkd")
