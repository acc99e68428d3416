# SPDX-License-Identifier: BSD-2-Clause
"""OpenWISP template of a policy: NetJSON DeviceConfiguration, as netjsonconfig accepts it.

The sections of `network` are given directly by package, type and name, since the schema cannot
express IPv6 rules (rule6). All other parts of the tree are files.
"""

from __future__ import annotations

from typing import Any

from ...generated_text import word
from ...policy.objects import Policy
from . import uci
from .tree import DEFAULTS_PATH, build_tree

# Parts that a template cannot express, each with the command to run on the device.
MANUAL_STEPS = (
    ("the interface names of the uplinks depend on the device", f"sh /{DEFAULTS_PATH}"),
    ("a template cannot create the symlink that starts a service at boot", "/etc/init.d/nftpolicy enable"),
    ("the files take effect only when the service starts", "/etc/init.d/nftpolicy start"),
)


def template(policy: Policy, link_guard: bool = True) -> dict[str, Any]:
    """Return the template, ready for json.dumps.

    Raises:
        ValueError: as `tree`; or a file contains the syntax of a template variable.
    """
    files = []
    for path, file in build_tree(policy, link_guard).items():
        if "{{" in file.text:
            raise ValueError(f"{path} contains '{{{{', which OpenWISP interprets as a variable")
        files.append({"path": f"/{path}", "mode": "0755" if file.executable else "0644", "contents": file.text})
    return {
        "type": "DeviceConfiguration",
        "network": [
            {
                "config_name": uci.uci_name(section.type),
                "config_value": uci.uci_name(section.name),
                **{key: _json_value(value) for key, value in section.options},
            }
            for section in uci.network_sections(policy)
        ],
        "files": files,
    }


def _json_value(value: str | tuple[str, ...]) -> str | list[str]:
    return word(value) if isinstance(value, str) else [word(item) for item in value]
