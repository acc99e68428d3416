# SPDX-License-Identifier: BSD-2-Clause
"""The only code that talks to Linux: libnftables, rtnetlink, sysctls, cgroups, accounts.

`interface.py` says what the rest may ask of a kernel; `linux.py` is the real one, `fake.py` keeps
the same state in memory, and the same tests hold both to it. Never here: any decision.
"""
