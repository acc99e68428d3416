# SPDX-License-Identifier: BSD-2-Clause
"""Netlink: rtnetlink(7), sock_diag(7) and the netfilter subsystems (nf_tables, conntrack)."""
