# SPDX-License-Identifier: BSD-2-Clause
"""Policy routing as Linux does it: ip rules, FIB tables, route lookup, source address, output route.

Belongs here: what `fib_rules_lookup`, `fib_table_lookup` and `ip_route_output` decide. Never here: nftables.
"""
