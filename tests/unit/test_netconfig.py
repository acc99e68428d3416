"""Files of `nftpolicy netconfig`: contents, second runs, refusals, in temporary directories."""

import configparser
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.cli import netconfig as command
from nftpolicy.cli import uninstall
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
