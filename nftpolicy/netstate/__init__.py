# SPDX-License-Identifier: BSD-2-Clause
"""State of one network namespace as values: nft tables, ip rules, routes and sysctls.

Compiler, model, planner and kernel share these classes. `formats` decodes and encodes them
(libnftables JSON, nft text, `ip -j`, `ip -batch`). Everything here is pure.
Never here: the meaning of a policy, and access to a kernel.
"""
