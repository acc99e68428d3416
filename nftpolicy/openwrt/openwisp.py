# SPDX-License-Identifier: BSD-2-Clause
"""A policy as a template for OpenWISP: NetJSON's DeviceConfiguration, as netjsonconfig takes it.

The sections of `network` are given as they are, by package, type and name: the schema's own words for rules have no
place for IPv6's rules (rule6). Everything else of the tree goes as files.
"""

from __future__ import annotations

from typing import Any

from ..policy.objects import Policy
from . import uci
from .tree import DEFAULTS, tree

# What a template has no words for, each with what is to be done on the device.
BESIDE = (
    ("the name of each uplink's interface is the device's", f"sh /{DEFAULTS}"),
    ("a file can't be made a link, by which a service starts at boot", "/etc/init.d/nftpolicy enable"),
    ("files alone put nothing in force", "/etc/init.d/nftpolicy start"),
)


def template(policy: Policy, link_guard: bool = True) -> dict[str, Any]:
    """The template, ready for json.dumps.

    Raises:
        ValueError: as `tree`; or a file has what would be taken for a variable.
    """
    files = []
    for path, one in tree(policy, link_guard).items():
        if "{{" in one.text:
            raise ValueError(f"{path} has '{{{{', which OpenWISP takes for a variable")
        files.append({"path": f"/{path}", "mode": "0755" if one.executable else "0644", "contents": one.text})
    return {
        "type": "DeviceConfiguration",
        "network": [
            {"config_name": one.type, "config_value": one.name, **{key: _held(value) for key, value in one.options}}
            for one in uci.sections(policy)
        ],
        "files": files,
    }


def _held(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)
