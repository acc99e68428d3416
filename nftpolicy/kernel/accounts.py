# SPDX-License-Identifier: BSD-2-Clause
"""Users and groups of this machine."""

from __future__ import annotations

import grp
import os
import pwd

from attrs import frozen


@frozen
class Login:
    """What the account of a user says: its numbers are the primary group's and those of all groups."""

    name: str
    group: int
    groups: tuple[int, ...]
    home: str


def login(uid: int) -> Login | None:
    """The account of that number, or None."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return None
    return Login(user.pw_name, user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid)), user.pw_dir)


def number(kind: str, name: str) -> int | None:
    """The number of the user or group (`kind`) of that name, or None."""
    try:
        return grp.getgrnam(name).gr_gid if kind == "group" else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def names(kind: str) -> list[str]:
    """All users or groups."""
    return [one.gr_name for one in grp.getgrall()] if kind == "group" else [one.pw_name for one in pwd.getpwall()]


def user_and_group(uid: int) -> tuple[str, str] | None:
    """The names of the user of that number and of its group, or None."""
    try:
        user = pwd.getpwuid(uid)
        return user.pw_name, grp.getgrgid(user.pw_gid).gr_name
    except KeyError:
        return None
