"""The guard's files, the units and what is put where: into folders of the test alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.cli import guard as guard_command
from nftpolicy.cli import install as install_command
from nftpolicy.cli import uninstall as uninstall_command
from nftpolicy.cli.common import Failure, read_policy
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.runtime.changes.unproved import NotProved
from nftpolicy.runtime.place import boot, files, units
from tests.guarded import ROOT

POLICIES = sorted((ROOT / "rulesets").glob("*.toml"))
GLUON = ROOT / "rulesets" / "gluon-fastd.toml"
UNITDIR = Path("/etc/systemd/system")
NFT = "/usr/sbin/nft"


def install(root, policy=GLUON, program="/usr/bin/nftpolicy", force=False):
    install_command.command(policy, root, UNITDIR, program, NFT, force, False, None)


def installed(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def root(tmp_path):
    found = tmp_path / "root"
    found.mkdir()
    return found


# --- the files ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: file.stem)
def test_every_policy_has_a_guard_that_is_proved(file):
    found = boot.tables(read_policy(file)[0])
    assert [table.key for table in (found.guard, found.link, found.block)] == [
        ("inet", "nftpolicy"),
        ("netdev", "nftpolicy"),
        ("inet", "nftpolicy"),
    ]


def test_names_of_users_and_groups_are_numbers():
    text = boot.tables(read_policy(GLUON)[0]).shown()
    assert not re.search(r"sk[ug]id [a-z]", text)
    assert text.index("add table inet nftpolicy") < text.index("delete table inet nftpolicy") < text.index("chain")


def test_a_guard_that_is_not_proved_is_not_written(monkeypatch, tmp_path):
    def forgetful(policy):
        state = compile_policy(policy)
        inet, netdev = state.tables
        chains = tuple(evolve(one, rules=()) if one.name == "guard" else one for one in inet.chains)
        chains = tuple(evolve(one, hook=evolve(one.hook, policy="accept")) if one.hook else one for one in chains)
        return evolve(state, tables=(evolve(inet, chains=chains), netdev))

    monkeypatch.setattr(boot, "compile_policy", forgetful)
    with pytest.raises(NotProved):
        boot.tables(read_policy(GLUON)[0])
    with pytest.raises(Failure, match="nothing was written"):
        guard_command.command(GLUON, tmp_path / "guard.nft", True)
    assert list(tmp_path.iterdir()) == []


def test_the_guard_is_written_once(tmp_path, capsys):
    for _ in range(2):
        guard_command.command(GLUON, tmp_path / "guard.nft", True)
    assert capsys.readouterr().out.splitlines()[-1] == f"gluon-fastd: {tmp_path}/guard.nft is as it should be"
    assert {path.name for path in tmp_path.iterdir()} == {"guard.nft", "guard-link.nft", "guard-block.nft"}


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path, monkeypatch):
    guard_command.command(GLUON, tmp_path / "guard.nft", True)
    before = installed(tmp_path)

    def full(path, content, mode):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(Failure, match="No space left"):
        guard_command.command(ROOT / "rulesets" / "vpn-killswitch.toml", tmp_path / "guard.nft", True)
    assert installed(tmp_path) == before


# --- the units ------------------------------------------------------------------------------


def test_no_unit_opens_anything_when_it_stops():
    for name, text in units.units("/usr/bin/nftpolicy", NFT).items():
        assert "ExecStop" not in text, name
        assert "release" not in text, name


def test_the_guard_stands_before_the_network():
    text = units.units("/usr/bin/nftpolicy", NFT)["nftpolicy-guard.service"]
    assert "\nBefore=network-pre.target\n" in text
    assert "\nWants=network-pre.target\n" in text
    assert "\nDefaultDependencies=no\n" in text
    assert "python" not in text
    assert text.index("guard-block.nft") < text.index(" -f /etc/nftpolicy/guard.nft") < text.index("guard-link.nft")
    assert re.findall(r"ExecStart=(-?)\S+ -f \S+/(\S+)\.nft", text) == [
        ("-", "guard-block"),
        ("", "guard"),
        ("-", "guard-link"),
    ]


def test_systemd_finds_no_fault_in_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine, so the units were not looked at by systemd")
    program = tmp_path / "nftpolicy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths = []
    for name, text in units.units(str(program), str(program)).items():
        (tmp_path / name).write_text(text.replace("Documentation=man:", "# "))
        paths.append(str(tmp_path / name))
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    mine = [line for line in done.stderr.splitlines() if "nftpolicy" in line]
    assert mine == []
    (tmp_path / "nftpolicy.service").write_text("[Service]\nExecStrat=/bin/true\n")
    done = subprocess.run(["systemd-analyze", "verify", paths[1]], capture_output=True, text=True, check=False)
    assert "nftpolicy.service" in done.stderr, "the control: a fault is told"


@pytest.mark.parametrize("path", ["nftpolicy", "/usr/bin/nft policy", "/a%b", "/a\nb", "/$HOME"])
def test_a_path_that_means_something_else_in_a_unit_is_refused(path):
    with pytest.raises(ValueError, match="can't stand in a unit"):
        units.units(path, NFT)


# --- what is put where -----------------------------------------------------------------------


def test_install_twice_and_uninstall(root, capsys):
    install(root)
    first = installed(root)
    assert set(first) == {
        "etc/nftpolicy/policy.toml",
        "etc/nftpolicy/guard.nft",
        "etc/nftpolicy/guard-link.nft",
        "etc/nftpolicy/guard-block.nft",
        *(f"etc/systemd/system/{name}" for name in units.NAMES),
        "var/lib/nftpolicy/installed.json",
    }
    install(root)
    assert installed(root) == first
    assert "everything is in place already" in capsys.readouterr().out
    uninstall_command.command(root, False, None)
    assert set(installed(root)) == {"etc/nftpolicy/policy.toml", "var/lib/nftpolicy/installed.json"}
    uninstall_command.command(root, True, None)
    assert installed(root) == {}
    capsys.readouterr()
    uninstall_command.command(root, False, None)
    assert capsys.readouterr().out == "there is nothing to remove\n"


def test_what_the_admin_changed_is_neither_replaced_nor_removed(root, capsys):
    install(root)
    unit = root / "etc/systemd/system/nftpolicy.service"
    unit.write_text("mine\n")
    before = installed(root)
    with pytest.raises(Failure, match="nothing was written"):
        install(root, program="/opt/nftpolicy")
    assert installed(root) == before
    uninstall_command.command(root, True, None)
    assert unit.read_text() == "mine\n"
    assert f"kept {unit}: it was changed" in capsys.readouterr().err


def test_another_policy_needs_force(root):
    install(root)
    other = ROOT / "rulesets" / "vpn-killswitch.toml"
    with pytest.raises(Failure, match=r"policy\.toml.*--force"):
        install(root, other)
    install(root, other, force=True)
    assert (root / "etc/nftpolicy/policy.toml").read_bytes() == other.read_bytes()


def test_a_disk_that_is_full_leaves_no_half(root, monkeypatch):
    write, count = files._write, []

    def full(path, content, mode):
        count.append(path)
        if len(count) == 5:
            raise OSError(28, "No space left on device", str(path))
        write(path, content, mode)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(Failure, match="No space left"):
        install(root)
    assert list(root.iterdir()) == []


def test_a_damaged_list_is_told(root):
    install(root)
    (root / "var/lib/nftpolicy/installed.json").write_text("{")
    with pytest.raises(Failure, match="is damaged"):
        uninstall_command.command(root, False, None)
