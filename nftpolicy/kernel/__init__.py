# SPDX-License-Identifier: BSD-2-Clause
"""The only code that talks to Linux: nftables, netlink, BPF, sysctls, cgroups, sockets, accounts.

`interface.py` lists the operations of a kernel; `linux.py` implements them, `fake.py` implements
them in memory for tests, and the same tests check both. `errors.py` has all exceptions. Decisions
belong elsewhere.
"""
