"""Guard files, units and init scripts that `install` writes, in temporary directories."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.cli import check as check_command
from nftpolicy.cli import common, install_common
from nftpolicy.cli import guard as guard_command
from nftpolicy.cli import install as install_command
from nftpolicy.cli import resolver as resolver_command
from nftpolicy.cli import uninstall as uninstall_command
from nftpolicy.cli.common import Failure, read_policy
from nftpolicy.cli.install_common import StartedBy, require_readable_by_units
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.integration import procd, systemd_units
from nftpolicy.netstate.formats import nft_text
from nftpolicy.runtime.apply.errors import PolicyNotProved
from nftpolicy.runtime.install import boot_guard, init_systems, installed_files
from nftpolicy.runtime.install import installer as place
from tests.guarded_lab import ROOT

POLICIES = [*sorted((ROOT / "rulesets").glob("*.toml")), *sorted((ROOT / "tests" / "golden").glob("*/policy.toml"))]
GLUON = ROOT / "rulesets" / "gluon-fastd.toml"
NFT = "/usr/sbin/nft"


def install(root, policy=GLUON, program="/usr/bin/nftpolicy", force=False, unitdir=None, enable=False, init=None):
    chosen = StartedBy(init) if init else None
    install_command.command(policy, root, unitdir, program, NFT, force, enable, chosen)


def installed_files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def root(tmp_path):
    found = tmp_path / "root"
    found.mkdir()
    return found


# --- the files ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_boot_guard_of_every_policy_is_proved(file):
    found = boot_guard.build_boot_guard(read_policy(file)[0])
    assert [table.key for table in (found.guard, found.link, found.block)] == [
        ("inet", "nftpolicy"),
        ("netdev", "nftpolicy"),
        ("inet", "nftpolicy"),
    ]


def test_guard_file_has_numbers_of_users_and_groups():
    text = boot_guard.build_boot_guard(read_policy(GLUON)[0]).guard_text()
    assert not re.search(r"sk[ug]id [a-z]", text)
    assert text.index("add table inet nftpolicy") < text.index("delete table inet nftpolicy") < text.index("chain")


def test_unproved_boot_guard_is_not_written(monkeypatch, tmp_path):
    def forgetful(policy):
        state = compile_policy(policy)
        inet, netdev = state.tables
        chains = tuple(evolve(one, rules=()) if one.name == "guard" else one for one in inet.chains)
        chains = tuple(evolve(one, hook=evolve(one.hook, policy="accept")) if one.hook else one for one in chains)
        return evolve(state, tables=(evolve(inet, chains=chains), netdev))

    monkeypatch.setattr(boot_guard, "compile_policy", forgetful)
    with pytest.raises(PolicyNotProved):
        boot_guard.build_boot_guard(read_policy(GLUON)[0])
    with pytest.raises(Failure, match="nothing was written"):
        guard_command.command(GLUON, tmp_path / "guard.nft", True)
    assert list(tmp_path.iterdir()) == []


def test_second_guard_command_writes_nothing(tmp_path, capsys):
    for _ in range(2):
        guard_command.command(GLUON, tmp_path / "guard.nft", True)
    assert capsys.readouterr().out.splitlines()[-1] == f"gluon-fastd: {tmp_path}/guard.nft is up to date already"
    assert {f"etc/nftpolicy/{path.name}" for path in tmp_path.iterdir()} == GUARD_FILES


def test_guard_removes_the_file_of_a_lost_device(tmp_path, monkeypatch, capsys):
    text = GLUON.read_text()
    (tmp_path / "two.toml").write_text(text.replace('devices = ["br-wan"]', 'devices = ["br-wan", "wwan0"]'))
    assert (tmp_path / "two.toml").read_text() != text
    guard, foreign = tmp_path / "guard.nft", tmp_path / "guard-link-foreign.nft"
    foreign.write_text("# of the administrator\n")
    guard_command.command(tmp_path / "two.toml", guard, True)
    listed = {str(path): path.read_bytes() for path in tmp_path.glob("guard*") if path != foreign}
    assert str(tmp_path / "guard-link-wwan0.nft") in listed
    here = (Path("/"), str(tmp_path / "root"))
    read = installed_files.Manifest.read
    monkeypatch.setattr(installed_files.Manifest, "read", lambda root: read(*here))
    before = installed_files.Manifest(*here).with_files(listed)
    with installed_files.replace_files(before.as_files()):
        pass
    guard_command.command(GLUON, guard, True)
    assert f"removed {tmp_path}/guard-link-wwan0.nft" in capsys.readouterr().out
    left = {str(path) for path in tmp_path.glob("guard*")}
    assert left == set(listed) - {str(tmp_path / "guard-link-wwan0.nft")} | {str(foreign)}
    assert set(read(*here).files) == left - {str(foreign)}
    guard_command.command(tmp_path / "two.toml", guard, True)
    assert set(read(*here).files) == set(listed), "uninstall removes what guard added"


def test_install_removes_the_guard_of_a_lost_device(root, tmp_path, capsys):
    text = GLUON.read_text()
    (tmp_path / "two.toml").write_text(text.replace('devices = ["br-wan"]', 'devices = ["br-wan", "wwan0"]'))
    install(root, tmp_path / "two.toml")
    assert (root / "etc/nftpolicy/guard-link-wwan0.nft").exists()
    install(root, force=True)
    assert f"removed {root}/etc/nftpolicy/guard-link-wwan0.nft" in capsys.readouterr().out
    assert {path for path in installed_files_of(root) if "guard" in path and path.endswith("nft")} == GUARD_FILES


def test_install_removes_files_of_guard_but_no_changed_ones(root, tmp_path):
    text = GLUON.read_text()
    (tmp_path / "three.toml").write_text(text.replace('devices = ["br-wan"]', 'devices = ["br-wan", "wwan0", "wwan1"]'))
    install(root, tmp_path / "three.toml")
    directory = root / "etc/nftpolicy"
    written = (directory / "guard-link-wwan0.nft").read_text()
    (directory / "guard-link-wwan1.nft").write_text(f"{written}# of the administrator\n")
    (directory / "guard-link-wwan2.nft").write_text(written)  # by 'guard' alone: it is not in the manifest
    (directory / "guard-link-wwan3.nft").write_text("# of the administrator\n")
    install(root, force=True)
    names = {path.name for path in directory.glob("guard-link-*")}
    assert names == {"guard-link-br-wan.nft", "guard-link-wwan1.nft", "guard-link-wwan3.nft"}


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_guard_files_hold_every_chain_of_the_link_guard(file):
    found = boot_guard.build_boot_guard(read_policy(file)[0])
    files = {path.name: content.decode() for path, content in found.files().items()}
    texts = {name: text for name, text in files.items() if name.startswith("guard-link")}
    for chain in found.link.chains:
        name = f"guard-link-{chain.hook.device}.nft" if chain.hook else "guard-link.nft"
        added = texts[name].split("\ntable netdev nftpolicy {\n")[1]
        for rule in chain.rules:
            assert f"\t\t{nft_text.rule_text(rule)}\n" in added
        assert f"flush chain netdev nftpolicy {chain.name}\n" in texts[name]
    assert len(texts) == 1 + sum(chain.hook is not None for chain in found.link.chains)


def test_guard_on_full_disk_keeps_the_old_files(tmp_path, monkeypatch):
    guard_command.command(GLUON, tmp_path / "guard.nft", True)
    before = installed_files_of(tmp_path)

    def fail_on_full_disk(path, content, mode):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(installed_files, "write_temporary", fail_on_full_disk)
    with pytest.raises(Failure, match="No space left"):
        guard_command.command(ROOT / "rulesets" / "vpn-killswitch.toml", tmp_path / "guard.nft", True)
    assert installed_files_of(tmp_path) == before


# --- the units ------------------------------------------------------------------------------


def test_units_release_nothing_when_stopped():
    for name, text in systemd_units.render_units("/usr/bin/nftpolicy", NFT).items():
        assert "ExecStop" not in text, name
        assert "release" not in text, name


def test_guard_unit_starts_before_the_network():
    text = systemd_units.render_units("/usr/bin/nftpolicy", NFT)["nftpolicy-guard.service"]
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
    assert """for file in /etc/nftpolicy/guard-link-*.nft; do /usr/sbin/nft -f "$$file"; done""" in text


def test_udev_loads_the_guard_of_a_device_that_appears():
    ((path, text),) = systemd_units.render_udev_rules("/opt/sbin/nft").items()
    assert Path(path).name > "80-net-setup-link.rules", "it renames devices"
    assert text.splitlines()[-1] == (
        'ACTION=="add|move", SUBSYSTEM=="net", TEST=="/etc/nftpolicy/guard-link-$name.nft", '
        'RUN+="/opt/sbin/nft -f /etc/nftpolicy/guard-link-$name.nft"'
    )


@pytest.mark.parametrize("program", ["/home/user/.local/bin/nftpolicy", "/root/bin/nftpolicy", "/tmp/nftpolicy"])
def test_program_that_units_may_not_see_is_refused(program):
    with pytest.raises(Failure, match=f"{program}: units may not see {program[:5].rstrip('/')}"):
        require_readable_by_units(program)


def test_link_to_a_hidden_program_is_refused(tmp_path):
    (tmp_path / "nftpolicy").symlink_to("/home/user/.local/share/pipx/venvs/nftpolicy/bin/nftpolicy")
    with pytest.raises(Failure, match="units may not see /home"):
        require_readable_by_units(str(tmp_path / "nftpolicy"))


def test_python_of_a_hidden_environment_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/nowhere/venv")
    monkeypatch.setattr(install_common, "HIDDEN_DIRECTORIES", ("/nowhere",))
    with pytest.raises(Failure, match="/nowhere/venv: units may not see /nowhere"):
        require_readable_by_units(str(Path(sys.executable).with_name("nftpolicy")))
    require_readable_by_units("/opt/nftpolicy/bin/nftpolicy")


def test_units_pass_systemd_analyze(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine, so the units were not looked at by systemd")
    program = tmp_path / "nftpolicy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths = []
    for name, text in systemd_units.render_units(str(program), str(program)).items():
        (tmp_path / name).write_text(text.replace("Documentation=man:", "# "))
        paths.append(str(tmp_path / name))
    result = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    mine = [line for line in result.stderr.splitlines() if "nftpolicy" in line]
    assert mine == []
    (tmp_path / "nftpolicy.service").write_text("[Service]\nExecStrat=/bin/true\n")
    result = subprocess.run(["systemd-analyze", "verify", paths[1]], capture_output=True, text=True, check=False)
    assert "nftpolicy.service" in result.stderr, "the control: a fault is told"


def test_resolver_unit_restarts_with_few_capabilities():
    text = systemd_units.render_units("/usr/bin/nftpolicy", NFT)[systemd_units.RESOLVER_TEMPLATE]
    for line in ("Type=notify", "Restart=always", "StartLimitIntervalSec=0", "Before=nss-lookup.target"):
        assert f"\n{line}\n" in text
    assert "\nExecStart=/usr/bin/nftpolicy resolver --uplink %i /etc/nftpolicy/policy.toml\n" in text
    assert "nftpolicy.service" in re.search("^After=(.*)$", text, re.MULTILINE)[1].split()
    assert "CAP_SYS_ADMIN" not in text
    assert "Wants=nss-lookup.target" not in text, "it is not the machine's own"


@pytest.mark.parametrize("uplink", ["wan", "my-lte", "A_1"])
def test_resolver_unit_has_the_exact_uplink_name(uplink):
    assert systemd_units.resolver_unit(uplink) == f"nftpolicy-resolver@{uplink}.service"
    assert systemd_units.units_to_start([uplink])[-1] == systemd_units.resolver_unit(uplink)
    assert systemd_units.RESOLVER_TEMPLATE not in systemd_units.units_to_start([uplink])


@pytest.mark.parametrize("path", ["nftpolicy", "/usr/bin/nft policy", "/a%b", "/a\nb", "/$HOME"])
def test_path_with_unit_specifier_is_refused(path):
    with pytest.raises(ValueError, match="cannot be used in a unit"):
        systemd_units.render_units(path, NFT)


# --- what is put where -----------------------------------------------------------------------


def test_install_is_idempotent_and_uninstall_is_complete(root, capsys):
    install(root)
    first = installed_files_of(root)
    assert set(first) == {
        "etc/nftpolicy/policy.toml",
        *GUARD_FILES,
        "etc/udev/rules.d/85-nftpolicy.rules",
        *(f"etc/systemd/system/{name}" for name in systemd_units.UNIT_NAMES),
        "var/lib/nftpolicy/installed.json",
    }
    install(root)
    assert installed_files_of(root) == first
    assert "all files are up to date already" in capsys.readouterr().out
    uninstall_command.command(root, False, None)
    assert set(installed_files_of(root)) == {"etc/nftpolicy/policy.toml", "var/lib/nftpolicy/installed.json"}
    assert (root / "etc/udev/rules.d").is_dir(), "it is not ours"
    uninstall_command.command(root, True, None)
    assert installed_files_of(root) == {}
    capsys.readouterr()
    uninstall_command.command(root, False, None)
    assert capsys.readouterr().out == "there is nothing to remove\n"


def test_file_changed_by_admin_is_kept(root, capsys):
    install(root)
    unit = root / "etc/systemd/system/nftpolicy.service"
    unit.write_text("mine\n")
    before = installed_files_of(root)
    with pytest.raises(Failure, match="nothing was written"):
        install(root, program="/opt/nftpolicy")
    assert installed_files_of(root) == before
    uninstall_command.command(root, True, None)
    assert unit.read_text() == "mine\n"
    assert f"kept {unit}: it was changed" in capsys.readouterr().err


def test_install_of_another_policy_needs_force(root):
    install(root)
    other = ROOT / "rulesets" / "vpn-killswitch.toml"
    with pytest.raises(Failure, match=r"policy\.toml.*--force"):
        install(root, other)
    install(root, other, force=True)
    assert (root / "etc/nftpolicy/policy.toml").read_bytes() == other.read_bytes()


def test_install_on_full_disk_writes_nothing(root, monkeypatch):
    write, count = installed_files.write_temporary, []

    def fail_on_full_disk(path, content, mode):
        count.append(path)
        if len(count) == 5:
            raise OSError(28, "No space left on device", str(path))
        write(path, content, mode)

    monkeypatch.setattr(installed_files, "write_temporary", fail_on_full_disk)
    with pytest.raises(Failure, match="No space left"):
        install(root)
    assert list(root.iterdir()) == []


def test_damaged_installed_json_is_reported(root):
    install(root)
    (root / "var/lib/nftpolicy/installed.json").write_text("{")
    with pytest.raises(Failure, match="is damaged"):
        uninstall_command.command(root, False, None)


# --- instances of resolvers ------------------------------------------------------------------

WANTS = "etc/systemd/system/nftpolicy.service.wants"
FIXED = " ".join(name for name in systemd_units.UNIT_NAMES if name != systemd_units.RESOLVER_TEMPLATE)


def policy_of(tmp_path, *uplinks):
    """Write a policy with these uplinks, each with a resolver, and one uplink without."""
    text = 'name = "names"\ninside = []\n'
    for number, name in enumerate(("bare", *uplinks), 1):
        text += f'[uplink.{name}]\ndevices = ["eth{number}"]\nmark = "{number}/0xff"\ntable = {number}\n'
        text += f'[service.s{number}]\nuplink = "{name}"\ngroup = {4000 + number}\n'
        if name != "bare":
            text += f'[uplink.{name}.resolver]\nlisten = ["127.0.0.1:{5000 + number}"]\n'
    file = tmp_path / "names.toml"
    file.write_text(text)
    return file


def enable(root, *uplinks):
    """Create the links that `systemctl --root` creates."""
    (root / WANTS).mkdir(parents=True, exist_ok=True)
    for name in uplinks:
        (root / WANTS / systemd_units.resolver_unit(name)).symlink_to(
            f"/etc/systemd/system/{systemd_units.RESOLVER_TEMPLATE}"
        )


def next_command(capsys):
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next, ")]
    return line.partition(": ")[2]


def test_install_into_image_prints_resolver_units_to_enable(root, tmp_path, capsys):
    order = f"systemctl --root={root} enable {FIXED}"
    install(root, policy_of(tmp_path, "wan", "my-lte"))
    assert next_command(capsys) == f"{order} nftpolicy-resolver@wan.service nftpolicy-resolver@my-lte.service"
    enable(root, "wan", "my-lte")
    install(root, policy_of(tmp_path, "wan"), force=True)
    gone = f"systemctl --root={root} disable nftpolicy-resolver@my-lte.service"
    assert next_command(capsys) == f"{order} nftpolicy-resolver@wan.service && {gone}"


def test_install_without_resolver_has_only_the_template(root, tmp_path, capsys):
    install(root, policy_of(tmp_path))
    assert (root / "etc/systemd/system" / systemd_units.RESOLVER_TEMPLATE).exists()
    assert next_command(capsys) == f"systemctl --root={root} enable {FIXED}"


def test_uninstall_of_image_removes_links_of_instances(root, tmp_path):
    install(root, policy_of(tmp_path, "wan", "my-lte"))
    enable(root, "wan", "my-lte")
    (root / WANTS / "other@wan.service").symlink_to("/etc/systemd/system/other@.service")
    uninstall_command.command(root, True, None)
    assert links(root) == {f"{WANTS}/other@wan.service": "/etc/systemd/system/other@.service"}


def test_install_of_bad_policy_changes_nothing(root, tmp_path):
    install(root, policy_of(tmp_path, "wan"))
    enable(root, "wan")
    before = installed_files_of(root), links(root)
    bad = policy_of(tmp_path, "wan")
    bad.write_text(bad.read_text().replace("5002", "none"))
    with pytest.raises(Failure, match=r"names\.toml:\d+"):
        install(root, bad, force=True)
    assert (installed_files_of(root), links(root)) == before


@pytest.mark.parametrize(
    ("fresh", "gone", "orders"),
    [
        (False, [], ["daemon-reload", "enable --quiet --now A nftpolicy-resolver@wan.service"]),
        (
            True,
            ["nftpolicy-resolver@old.service"],
            [
                "daemon-reload",
                "try-reload-or-restart nftpolicy.service",
                "stop nftpolicy-resolver@old.service",
                "disable nftpolicy-resolver@old.service",
                "daemon-reload",
                "enable --quiet --now A nftpolicy-resolver@wan.service",
            ],
        ),
    ],
)
def test_install_runs_expected_systemctl_commands(monkeypatch, fresh, gone, orders):
    commands = []
    monkeypatch.setattr(place, "run_commands", commands.extend)
    monkeypatch.setattr(place, "stale_instances", lambda root, wanted: gone)
    wanted = place.InstallPlan(init_systems.SYSTEMD, {}, resolver_uplinks=("wan",))
    assert place.enable_and_start(wanted, fresh) == gone
    assert [" ".join(one).replace(FIXED, "A") for one in commands] == [f"systemctl {one}" for one in orders]


def test_disable_commands_name_all_template_instances():
    stop, disable = init_systems.SYSTEMD.disable_commands([systemd_units.RESOLVER_TEMPLATE, "nftpolicy.service"])
    assert stop == ("systemctl", "stop", "nftpolicy-resolver@?*.service", "nftpolicy.service")
    assert disable == ("systemctl", "disable", systemd_units.RESOLVER_TEMPLATE, "nftpolicy.service")


def test_procd_plan_starts_only_the_init_scripts():
    assert place.InstallPlan(init_systems.PROCD, {}, resolver_uplinks=("wan",)).units_to_start == procd.SCRIPT_NAMES


# --- on OpenWrt ------------------------------------------------------------------------------

SCRIPTS = {f"etc/init.d/{name}" for name in procd.SCRIPT_NAMES}
GUARD_FILES = {f"etc/nftpolicy/{name}.nft" for name in ("guard", "guard-link", "guard-link-br-wan", "guard-block")}
UPGRADE_LIST = "etc/nftpolicy/kept/installed.json"  # /var is a link to memory there


def links(root):
    return {str(path.relative_to(root)): str(path.readlink()) for path in root.rglob("*") if path.is_symlink()}


@pytest.fixture
def router(root):
    """Return the root directory of an OpenWrt device."""
    (root / "etc").mkdir()
    (root / "etc/openwrt_release").write_text("DISTRIB_ID='OpenWrt'\n")
    return root


def test_install_on_openwrt_writes_init_scripts(router, capsys):
    install(router)
    first = installed_files_of(router)
    assert set(first) == {
        "etc/openwrt_release",
        "etc/nftpolicy/policy.toml",
        "lib/upgrade/keep.d/nftpolicy",
        UPGRADE_LIST,
        *GUARD_FILES,
        *SCRIPTS,
    }
    assert all(stat.S_IMODE((router / one).stat().st_mode) == 0o755 for one in SCRIPTS)
    assert "an image builder of OpenWrt enables the scripts" in capsys.readouterr().out
    install(router)
    assert installed_files_of(router) == first
    assert links(router) == {}
    uninstall_command.command(router, True, None)
    assert set(installed_files_of(router)) == {"etc/openwrt_release"}


def test_init_option_is_remembered_in_the_root(root):
    install(root, init="procd", enable=True)
    assert set(installed_files_of(root)) >= SCRIPTS | {UPGRADE_LIST}
    assert links(root) == {path.lstrip("/"): target for path, target in procd.ENABLE_LINKS.items()}
    install(root, enable=True)
    assert not (root / "var").exists()
    assert links(root) == {path.lstrip("/"): target for path, target in procd.ENABLE_LINKS.items()}
    uninstall_command.command(root, True, None)
    assert installed_files_of(root) == links(root) == {}


def test_init_option_systemd_overrides_openwrt_detection(router):
    install(router, init="systemd")
    assert set(installed_files_of(router)) & SCRIPTS == set()
    assert (router / "etc/systemd/system/nftpolicy.service").exists()
    uninstall_command.command(router, True, StartedBy.systemd)
    assert set(installed_files_of(router)) == {"etc/openwrt_release"}


def test_guard_script_starts_before_firewall_and_network():
    starts = {name: int(re.search(r"^START=(\d+)$", text, re.MULTILINE)[1]) for name, text in scripts().items()}
    assert starts["nftpolicy-guard"] < 19 < 20 < starts["nftpolicy"]
    assert [f"S{starts[name]}{name}" for name in procd.SCRIPT_NAMES] == [Path(link).name for link in procd.ENABLE_LINKS]


def test_scripts_release_nothing_and_guard_needs_no_python():
    for name, text in scripts().items():
        code = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        assert not re.search(r"release|stop|delete|flush", code.replace("was not released", "")), name
    guard = scripts()["nftpolicy-guard"]
    assert "nftpolicy apply" not in guard and "/usr/bin/nftpolicy" not in guard
    assert re.findall(r"nft -f \S+/(\S+)\.nft", guard) == ["guard-block", "guard", "guard-link"]
    assert "for file in /etc/nftpolicy/guard-link-*.nft; do" in guard


def scripts():
    return procd.render_scripts("/usr/bin/nftpolicy", NFT)


@pytest.mark.parametrize("path", ["nftpolicy", "/usr/bin/nft policy", "/a;b", "/a\nb", "/$HOME", "/`id`"])
def test_path_with_shell_characters_is_refused(path, router):
    with pytest.raises(Failure, match="cannot be used in a unit or an init script"):
        install(router, program=path)
    assert set(installed_files_of(router)) == {"etc/openwrt_release"}


def test_sysupgrade_list_names_existing_files(router):
    install(router, enable=True)
    listed_paths = (router / "lib/upgrade/keep.d/nftpolicy").read_text().splitlines()
    assert len(listed_paths) == 3
    assert all((router / one.lstrip("/")).exists() for one in listed_paths)


def test_foreign_init_script_is_not_overwritten(router):
    script = router / "etc/init.d/nftpolicy"
    script.parent.mkdir()
    script.write_text("#!/bin/sh /etc/rc.common\n")
    before = installed_files_of(router)
    with pytest.raises(
        Failure, match=r"init\.d/nftpolicy: not written by nftpolicy, or changed since; nothing was written"
    ):
        install(router)
    assert installed_files_of(router) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unitdir": Path("/etc/init.d")}, "--unitdir is for systemd; the init system of this system is procd"),
        ({"init": "systemd", "enable": True}, "--enable cannot be used with --destdir"),
        ({"init": "systemd", "unitdir": Path("here")}, "--unitdir takes an absolute path, got 'here'"),
    ],
)
def test_conflicting_install_options_change_nothing(router, options, said):
    with pytest.raises(Failure, match=said):
        install(router, **options)
    assert set(installed_files_of(router)) == {"etc/openwrt_release"}


def test_enable_without_running_procd_is_refused():
    with pytest.raises(Failure, match="--enable needs procd, which does not run on this machine"):
        install(None, init="procd", enable=True)


def test_wrong_enable_links_are_replaced(router):
    install(router, enable=True)
    for path in procd.ENABLE_LINKS:
        (router / path.lstrip("/")).unlink()
        (router / path.lstrip("/")).symlink_to("nowhere")
    install(router, enable=True)
    assert links(router) == {path.lstrip("/"): target for path, target in procd.ENABLE_LINKS.items()}


# --- policies in /etc/nftpolicy ---------------------------------------------------------------


def policies(root, *names):
    folder = root / "etc/nftpolicy"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(GLUON.read_bytes())
    return [folder / name for name in names]


def test_policy_file_defaults_to_the_only_file(root):
    (only,) = policies(root, "wan.toml")
    assert common.policy_file(None, root) == only
    assert common.policy_file(GLUON, root) == GLUON
    (root / "etc/nftpolicy/guard.nft").write_text("")
    assert common.policy_file(None, root) == only


def test_policy_file_defaults_to_policy_toml_among_several(root):
    policies(root, "draft.toml", "policy.toml")
    assert common.policy_file(None, root).name == "policy.toml"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no policy file is given, and /etc/nftpolicy has none: write /etc/nftpolicy/policy.toml"),
        (["b.toml", "a.toml"], r"/etc/nftpolicy has several policies \(a\.toml, b\.toml\): name one"),
    ],
)
def test_policy_file_without_default_is_bad_input(root, names, said):
    policies(root, *names)
    with pytest.raises(Failure, match=said) as found:
        common.policy_file(None, root)
    assert found.value.status == common.EXIT_BAD_INPUT


def test_command_without_file_uses_the_default_policy(root, monkeypatch, capsys):
    (only,) = policies(root, "wan.toml")
    monkeypatch.setattr(common, "POLICY_DIRECTORY", str(root / "etc/nftpolicy"))
    check_command.command(None)
    assert capsys.readouterr().out == f"{only}: gluon-fastd: good: 1 uplink, 1 service, proved\n"


def identity(path):
    """Return what a replaced or changed file would have another one of; not the time of the last read."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_mode


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("init", ["systemd", "procd"])
def test_install_keeps_a_policy_in_its_place(root, named, init):
    (only,) = policies(root, "wan.toml")
    before = identity(only)
    install(root, only if named else None, init=init)
    found = installed_files_of(root)
    assert "etc/nftpolicy/policy.toml" not in found
    name = {"systemd": "etc/systemd/system/nftpolicy.service", "procd": "etc/init.d/nftpolicy"}[init]
    assert b"/etc/nftpolicy/wan.toml" in found[name]
    assert b"/policy.toml" not in found[name]
    install(root, init=init)
    uninstall_command.command(root, True, None)
    assert set(installed_files_of(root)) == {"etc/nftpolicy/wan.toml"}, "a person's"
    assert identity(only) == before


def test_install_with_several_policies_changes_nothing(root):
    policies(root, "a.toml", "b.toml")
    before = installed_files_of(root)
    with pytest.raises(Failure, match=r"a\.toml, b\.toml"):
        install(root, None)
    assert installed_files_of(root) == before


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("rulesets/gluon-fastd.toml", "wan\n"),
        ("tests/golden/03-two-uplinks/policy.toml", "wired\nlte\n"),
        ("rulesets/server-egress.toml", ""),
    ],
)
def test_resolver_list_names_uplinks_with_resolver(file, said, capsys):
    resolver_command.command(ROOT / file, None, True, False, False)
    assert capsys.readouterr().out == said


def test_umask_does_not_open_installed_files(root):
    (root / "etc/nftpolicy").mkdir(parents=True, mode=0o755)  # of an earlier version
    previous = os.umask(0)
    try:
        install(root)
    finally:
        os.umask(previous)
    modes = {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert not [path for path, mode in modes.items() if mode & 0o022]
    private = {path: mode for path, mode in modes.items() if path.startswith(("etc/nftpolicy", "var/lib/nftpolicy"))}
    assert set(private.values()) == {0o700, 0o600} and "etc/nftpolicy/policy.toml" in private
    (root / "etc/nftpolicy/policy.toml").chmod(0o666)
    install(root, force=True, policy=GLUON.with_name("gluon-wireguard.toml"))
    assert stat.S_IMODE((root / "etc/nftpolicy/policy.toml").stat().st_mode) == 0o600
