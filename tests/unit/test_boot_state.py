"""Boot state: read from symlinks, below a root."""

import pytest

from nftpolicy.runtime.boot_state import BootState, read_boot_state

UNITS = "etc/systemd/system"


def add_unit(root, name, link="multi-user.target.wants", directory=UNITS):
    file, symlink = root / directory / name, root / UNITS / link / name
    for path in (file, symlink):
        path.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[Unit]\n")
    symlink.symlink_to(f"/{directory}/{name}")
    return file


def test_nothing_is_enabled_without_links(tmp_path) -> None:
    add_unit(tmp_path, "nftpolicy.service").parent.joinpath("multi-user.target.wants/nftpolicy.service").unlink()
    assert read_boot_state(tmp_path) == BootState()
    assert BootState().disable_commands == []


@pytest.mark.parametrize("link", ["multi-user.target.wants", "network.target.requires"])
@pytest.mark.parametrize("directory", [UNITS, "usr/lib/systemd/system"])
def test_enabled_units_are_found_by_their_links(tmp_path, link, directory) -> None:
    add_unit(tmp_path, "nftpolicy-guard.service", "sysinit.target.wants", directory)
    add_unit(tmp_path, "nftpolicy-watch.service", link, directory)
    state = read_boot_state(tmp_path)
    assert state.units == ("nftpolicy-guard.service", "nftpolicy-watch.service")
    assert state.disable_commands == ["systemctl disable --now nftpolicy-guard.service nftpolicy-watch.service"]


def test_masked_unit_is_not_started(tmp_path) -> None:
    add_unit(tmp_path, "nftpolicy.service", directory="usr/lib/systemd/system")
    (tmp_path / UNITS / "nftpolicy.service").symlink_to("/dev/null")
    assert read_boot_state(tmp_path).units == ()


def test_link_without_a_unit_starts_nothing(tmp_path) -> None:
    add_unit(tmp_path, "nftpolicy.service").unlink()
    assert read_boot_state(tmp_path).units == ()


def test_resolver_guards_nothing(tmp_path) -> None:
    add_unit(tmp_path, "nftpolicy-resolver@wan.service", "nftpolicy.service.wants")
    assert read_boot_state(tmp_path).units == ()


def test_scripts_of_procd_are_found_by_start_links(tmp_path) -> None:
    for name, number in (("nftpolicy-guard", "S18"), ("nftpolicy", "K21")):
        for path in (tmp_path / "etc/init.d" / name, tmp_path / "etc/rc.d" / (number + name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\n")
    state = read_boot_state(tmp_path)
    assert state.scripts == ("nftpolicy-guard",), "the other one is only stopped"
    assert state.disable_commands == ["/etc/init.d/nftpolicy-guard disable"]
