# SPDX-License-Identifier: BSD-2-Clause
"""Users and groups of this machine."""

from __future__ import annotations

import grp
import os
import pwd

from attrs import frozen


@frozen
class UserAccount:
    """Account of a user: name, primary group, all groups, home directory."""

    name: str
    group: int
    groups: tuple[int, ...]
    home: str


def user_account(uid: int) -> UserAccount | None:
    """Return the account of a user by its number, or None."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return None
    return UserAccount(user.pw_name, user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid)), user.pw_dir)


def account_number(kind: str, name: str) -> int | None:
    """Return the number of the user or group (`kind`) of that name, or None."""
    try:
        return grp.getgrnam(name).gr_gid if kind == "group" else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def account_names(kind: str) -> list[str]:
    """Return the names of all users or groups (`kind`)."""
    if kind == "group":
        return [group.gr_name for group in grp.getgrall()]
    return [user.pw_name for user in pwd.getpwall()]


def user_and_group(uid: int) -> tuple[str, str] | None:
    """Return the names of a user and of its primary group, or None."""
    try:
        user = pwd.getpwuid(uid)
        return user.pw_name, grp.getgrgid(user.pw_gid).gr_name
    except KeyError:
        return None
