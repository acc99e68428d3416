# SPDX-License-Identifier: BSD-2-Clause
"""What a kernel holds: nft tables, ip rules, routes and sysctls, as values.

One vocabulary for compiler, model, planner and kernel, with its spellings
(libnftables JSON and nft text, `ip -batch` lines) in and out. Everything here
is pure. Never here: what a policy means, and how a kernel is reached.
"""
