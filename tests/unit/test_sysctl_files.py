"""Files of sysctl.d(5) against the sysctls of a policy."""

from pathlib import Path

import pytest

from nftpolicy.compiler.sysctls import required_sysctls
from nftpolicy.policy.load import load
from nftpolicy.runtime.sysctl_files import find_sysctl_conflicts

POLICY, _ = load(b'name = "p"\ninside = []\n[uplink.wan]\ndevices = ["eth0", "eth0.5"]\nmark = "0x1/0x1"\ntable = 1\n')
RP_FILTER = "net.ipv4.conf.all.rp_filter"


def conflicts(root: Path, files: dict[str, str]) -> list[tuple[str, int, str]]:
    """Return the file, line and value of each conflict."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return [(each.file, each.line, each.value) for each in find_sysctl_conflicts(POLICY, root)]


@pytest.mark.parametrize(
    "line",
    [
        f"{RP_FILTER}=1",
        f"  {RP_FILTER} =  1 ",
        "net/ipv4/conf/all/rp_filter = 1",
        f"-{RP_FILTER} = 1",
        "net.ipv4.conf.eth0/5.rp_filter = 1",
        "net/ipv4/conf/eth0.5/rp_filter = 1",
        "/net/ipv4/conf/all/rp_filter = 1",
    ],
)
def test_forms_of_a_line_are_read(tmp_path, line):
    assert conflicts(tmp_path, {"etc/sysctl.d/1.conf": f"# text\n\n{line}\n"}) == [("/etc/sysctl.d/1.conf", 3, "1")]


@pytest.mark.parametrize(
    "line",
    [
        f"{RP_FILTER} = 0",
        f"# {RP_FILTER} = 1",
        f"; {RP_FILTER} = 1",
        f"#{RP_FILTER} = 1",
        f"-{RP_FILTER}",
        "net.ipv4.conf.*.rp_filter = 2",
        "net.ipv4.conf.lan.rp_filter = 2",
        "= 1",
        "",
    ],
)
def test_line_that_undoes_nothing_is_no_conflict(tmp_path, line):
    assert conflicts(tmp_path, {"etc/sysctl.d/1.conf": f"{line}\n"}) == []


def test_last_assignment_counts(tmp_path):
    wrong, right = f"{RP_FILTER} = 2\n", f"{RP_FILTER} = 0\n"
    assert conflicts(tmp_path, {"usr/lib/sysctl.d/50.conf": wrong}) == [("/usr/lib/sysctl.d/50.conf", 1, "2")]
    assert conflicts(tmp_path, {"run/sysctl.d/60.conf": right}) == []
    assert conflicts(tmp_path, {"etc/sysctl.d/70.conf": right + wrong}) == [("/etc/sysctl.d/70.conf", 2, "2")]
    assert conflicts(tmp_path, {"etc/sysctl.conf": right}) == []


def test_file_hides_file_of_the_same_name(tmp_path):
    wrong = f"{RP_FILTER} = 2\n"
    assert conflicts(tmp_path, {"usr/lib/sysctl.d/a.conf": wrong, "run/sysctl.d/a.conf": "# nothing\n"}) == []
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/b.conf").symlink_to("/dev/null")
    assert conflicts(tmp_path, {"usr/lib/sysctl.d/b.conf": wrong}) == []
    assert conflicts(tmp_path, {"etc/sysctl.d/c": wrong}) == []


def test_message_names_file_key_and_values(tmp_path):
    conflicts(tmp_path, {"etc/sysctl.d/ufw.conf": f"{RP_FILTER} = 1\n"})
    (conflict,) = find_sysctl_conflicts(POLICY, tmp_path)
    assert str(conflict).startswith(f"/etc/sysctl.d/ufw.conf:1: sets {RP_FILTER} to 1, and the policy needs 0")


def test_every_required_sysctl_is_looked_for(tmp_path):
    required = required_sysctls(POLICY)
    text = "".join(f"{sysctl.path} = 7\n" for sysctl in required)
    assert len(conflicts(tmp_path, {"etc/sysctl.conf": text})) == len(required)
