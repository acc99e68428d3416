"""Drop-ins for the units of services: contents and paths, in temporary directories."""

import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.cli import uninstall as uninstall_command
from nftpolicy.cli import units as command
from nftpolicy.cli.common import Failure
from nftpolicy.generated_text import Unwritable
from nftpolicy.integration.systemd_dropins import ServiceUnit, dropin_text
from nftpolicy.integration.systemd_units import render_units as our_units
from nftpolicy.kernel.errors import Unavailable
from nftpolicy.policy.load import load
from nftpolicy.runtime.install import installed_files, service_dropins
from nftpolicy.runtime.services import preload
from tests.unit.test_install import install, installed_files_of

POLICY = """
name = "many"
inside = []
[uplink.wan]
devices = ["br-wan"]
mark = "0x500/0xff00"
table = 7
[service.fastd]
uplink = "wan"
group = 800
[service.dns]
uplink = "wan"
user = 900
marks = "preload"
[service.wg]
uplink = "wan"
kernel = true
"""
TO = Path("/etc/systemd/system")
FASTD, DNS = (f"{str(TO)[1:]}/{name}.service.d/nftpolicy.conf" for name in ("fastd", "dns"))


@pytest.mark.parametrize("text", ["/etc/x\nExecStart=/bin/sh", "/etc/a b", "/etc/%h", "/etc/$x", "-x"])
@pytest.mark.parametrize("part", ["program", "policy_path", "resolver_unit", "name"])
def test_dropin_has_no_line_of_a_path(part: str, text: str) -> None:
    policy = load(POLICY.replace("group = 800", 'group = 800\nmarks = "cgroup"').encode())[0]
    unit = ServiceUnit("fastd", policy, "resolver.service", "/usr/bin/nftpolicy", "/etc/policy.toml", {})
    assert "ExecStartPre=+/usr/bin/nftpolicy units --attach fastd /etc/policy.toml" in dropin_text(unit)
    if part == "name":
        policy = evolve(policy, service={text: policy.service["fastd"]})
    with pytest.raises(Unwritable):
        dropin_text(evolve(unit, policy=policy, **{part: text}))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path / "policy.toml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide a preload library, so that the tests need no compiler."""
    found = tmp_path / "libpacketmark.so"
    found.write_bytes(b"")
    monkeypatch.setattr(preload, "LIBRARY", found)


def units(policy, root=None, to=TO, unit=(), program="/usr/bin/nftpolicy", force=False, attach=None):  # type: ignore[no-untyped-def]
    command.command(policy, to, list(unit), root, program, attach, force)


def test_service_starts_after_the_resolver_of_its_uplink(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY.replace("[service.fastd]", "[uplink.wan.resolver]\n[service.fastd]"))
    units(policy, to=None)
    after = "\nAfter=nftpolicy-guard.service nftpolicy.service nftpolicy-resolver@wan.service "
    out = capsys.readouterr().out
    assert out.count(f"{after}systemd-resolved.service nscd.service\n") == 2
    assert out.count("\nInaccessiblePaths=-/run/systemd/resolve -/run/nscd\n") == 2


def test_service_of_uplink_without_resolver_keeps_its_names(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units(policy, to=None)
    assert "InaccessiblePaths" not in capsys.readouterr().out


def test_dropins_have_expected_text(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units(policy, to=None)
    out, err = capsys.readouterr()
    fastd, dns = out.split("# /etc/systemd/system/dns.service.d/nftpolicy.conf\n")
    assert fastd.startswith("# /etc/systemd/system/fastd.service.d/nftpolicy.conf\n")
    for text in (fastd, dns):
        assert "\nRequires=nftpolicy-guard.service\n" in text
        assert "\nAfter=nftpolicy-guard.service nftpolicy.service\n" in text
    assert "\n[Service]\nGroup=800\n" in fastd
    assert "Environment" not in fastd
    assert "\n[Service]\nUser=900\n" in dns
    assert f"\nEnvironment=LD_PRELOAD={tmp_path}/libpacketmark.so\n" in dns
    assert "\nEnvironment=LIBPACKETMARK_MARK=0x500/0xff00\n" in dns
    assert "\nAmbientCapabilities=CAP_NET_RAW\n" in dns
    assert err.startswith("nftpolicy: service wg has no unit: its sockets belong to the kernel")


def test_dropins_are_written_once_and_uninstalled(policy: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units(policy, root)
    first = installed_files_of(root)
    assert set(first) == {FASTD, DNS, "var/lib/nftpolicy/installed.json"}
    capsys.readouterr()
    units(policy, root)
    assert installed_files_of(root) == first
    assert capsys.readouterr().out == "all files are up to date already\n"
    uninstall_command.command(root, False, None)
    assert installed_files_of(root) == {}
    assert not (root / FASTD).parent.exists()


def test_dropins_are_added_to_installed_files(policy: Path, root: Path) -> None:
    install(root)
    before = set(installed_files_of(root))
    units(policy, root)
    assert set(installed_files_of(root)) == before | {FASTD, DNS}
    uninstall_command.command(root, True, None)
    assert installed_files_of(root) == {}


def test_foreign_dropin_is_kept_without_force(policy: Path, root: Path) -> None:
    (root / FASTD).parent.mkdir(parents=True)
    (root / FASTD).write_text("mine\n")
    with pytest.raises(Failure, match="nothing was written"):
        units(policy, root)
    assert installed_files_of(root) == {FASTD: b"mine\n"}
    units(policy, root, force=True)
    assert b"Group=800" in installed_files_of(root)[FASTD]


def test_dropins_on_full_disk_write_nothing(policy: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = installed_files.write_temporary, []

    def fail_on_full_disk(path, content, mode):  # type: ignore[no-untyped-def]
        count.append(path)
        if len(count) == 2:
            raise OSError(28, "No space left on device", str(path))
        write(path, content, mode)

    monkeypatch.setattr(installed_files, "write_temporary", fail_on_full_disk)
    with pytest.raises(Failure, match="No space left"):
        units(policy, root)
    assert list(root.iterdir()) == []


def test_dropin_of_removed_service_is_removed(policy: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units(policy, root)
    units(policy, root, unit=["fastd=vpn"])
    assert f"removed {root}/{FASTD}" in capsys.readouterr().out
    vpn = FASTD.replace("fastd.service.d", "vpn.service.d")
    assert vpn in installed_files_of(root)
    assert FASTD not in installed_files_of(root)
    (root / vpn).write_text("# of the administrator\n")
    units(policy, root)
    assert {vpn, FASTD} <= set(installed_files_of(root)), "a changed file stays"


@pytest.mark.parametrize(
    ("word", "unit"),
    [
        ("vpn", "vpn.service"),
        ("vpn.service", "vpn.service"),
        ("fastd@mesh", "fastd@mesh.service"),
        ("fastd@mesh.vpn", "fastd@mesh.vpn.service"),
        ("fastd@", "fastd@.service"),
        (r"a\x2db", r"a\x2db.service"),
    ],
)
def test_unit_name_is_completed(word: str, unit: str) -> None:
    assert service_dropins.unit_name(word) == unit


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("fastd", "--unit takes SERVICE=UNIT, got 'fastd'"),
        ("=a", "--unit takes"),
        ("fastd=", "--unit takes"),
        ("fasd=a", r"no service 'fasd' \(did you mean 'fastd'\?\); known are fastd, dns, wg"),
        ("wg=a", "service wg has no unit"),
        ("fastd=../x", "is not a valid name of a systemd unit"),
        ("fastd=a b", "is not a valid name of a systemd unit"),
        ("fastd=dns", "dns.service is the unit of two services"),
    ],
)
def test_invalid_unit_option_is_refused(policy: Path, root: Path, unit: str, message: str) -> None:
    with pytest.raises(Failure, match=message) as failure:
        units(policy, root, unit=[unit])
    assert failure.value.status == 2
    assert list(root.iterdir()) == []


def test_conflicting_dropin_options_are_refused(policy: Path, root: Path) -> None:
    for options, message in (
        ({"to": Path("relative")}, "absolute path"),
        ({"program": "/a b"}, "cannot be used in a unit"),
        ({"unit": ["fastd=a", "fastd=b"]}, "names service fastd twice"),
        ({"attach": "fastd"}, "has no service 'fastd' with marks"),
        ({"attach": "nobody"}, "has no service 'nobody' with marks"),
    ):
        with pytest.raises(Failure, match=message) as failure:
            units(policy, root, **options)
        assert failure.value.status == 2
    assert list(root.iterdir()) == []


def test_missing_preload_library_is_reported(
    policy: Path, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preload, "LIBRARY", tmp_path / "absent.so")
    with pytest.raises(Failure, match="gcc and libc6-dev") as failure:
        units(policy, root)
    assert (failure.value.status, list(root.iterdir())) == (4, [])


def test_program_without_preload_support_is_refused(policy: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "usr/lib/systemd/system"
    folder.mkdir(parents=True)
    (folder / "dns.service").write_text("[Service]\nExecStart=-+/usr/sbin/dns --flag\n")
    (folder / "inst@.service").write_text("[Service]\nExecStart = @/usr/sbin/dns dns\nExecStartPre=/bin/true\n")
    checked_programs = []

    def refusal(program: Path, user: int = 0) -> str:
        checked_programs.append((program, user))
        return f"{program} is linked statically"

    monkeypatch.setattr(preload, "refusal_reason", refusal)
    units(policy, root)  # it is not there: nothing can be said
    (root / "usr/sbin").mkdir()
    (root / "usr/sbin/dns").write_bytes(b"\x7fELF")
    for unit in ("dns", "inst@one"):
        with pytest.raises(Failure, match=r'service dns has marks = "preload", and .* is linked statically'):
            units(policy, root, unit=[f"dns={unit}"])
    assert checked_programs == [(root / "usr/sbin/dns", 900)] * 2


def test_unit_is_that_of_the_cgroup() -> None:
    keys = 'user = 0\nmarks = "cgroup"\ncgroup = "system.slice/snapd.service"'
    text = POLICY.replace("group = 800", keys).replace('marks = "preload"', "")
    host = service_dropins.DropInHost(Path("/"), "/usr/bin/nftpolicy", "/etc/policy.toml")
    drop_ins = service_dropins.build_dropins(load(text.encode())[0], {}, str(TO), host)
    (path,) = (path for path in drop_ins.texts if "snapd" in path)
    assert path == "/etc/systemd/system/snapd.service.d/nftpolicy.conf"
    assert "\nUser=0\n" in drop_ins.texts[path]
    assert "units --attach fastd" in drop_ins.texts[path]


def test_cgroup_of_unit_is_parsed() -> None:
    assert service_dropins.parse_unit_cgroup("2:cpu:/x\n0::/system.slice/a.service\n") == "system.slice/a.service"
    assert service_dropins.parse_unit_cgroup("0::/system.slice/a.service/.control\n") == "system.slice/a.service"
    with pytest.raises(Unavailable, match="no cgroup of version 2"):
        service_dropins.parse_unit_cgroup("2:cpu:/x\n")


def test_dropins_pass_systemd_analyze(policy: Path, root: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine, so the drop-ins were not looked at by systemd")
    units(policy, root)
    folder = root / str(TO)[1:]
    program = root / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("fastd", "dns"):
        (folder / f"{name}.service").write_text(f"[Service]\nExecStart={program}\n")
    for name, text in our_units(str(program), str(program)).items():
        (folder / name).write_text(text.replace("Documentation=man:", "# "))

    def message() -> str:
        names = [str(folder / f"{name}.service") for name in ("fastd", "dns")]
        return subprocess.run(
            ["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False,
            env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
        ).stderr  # fmt: skip

    assert [
        line for line in message().splitlines() if "nftpolicy.conf" in line or "fastd" in line or "dns" in line
    ] == []
    (root / DNS).write_text("[Service]\nAmbientCapabilities=CAP_NONE\nEnvironmnt=A\n")
    assert "Environmnt" in message(), "the control: a fault is told"


def test_drop_in_of_uid_rule_sets_the_user_alone(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY.replace('marks = "preload"', 'marks = "uid-rule"'))
    units(policy, to=None)
    _, dns = capsys.readouterr().out.split("# /etc/systemd/system/dns.service.d/nftpolicy.conf\n")
    service = dns.split("[Service]\n")[1]
    assert [line for line in service.splitlines() if line and not line.startswith("#")] == ["User=900"]


def test_units_name_groups_that_systemd_cannot_use(policy: Path) -> None:
    """A unit of a group without a name ends with status 216/GROUP."""
    text = policy.read_text().replace("group = 800", "group = 59123").replace("group = 0", "group = 59124")
    problems = list(command.nameless_accounts(load(text.encode())[0]))
    assert any(
        each.endswith("systemd needs a name for group 59123: groupadd --gid 59123 nftpolicy-fastd") for each in problems
    )
