# SPDX-License-Identifier: BSD-2-Clause
"""Configuration files for the programs that manage the network, for routes in an uplink's table.

One module per program: a function from a policy to files. Pure; knows only the policy. Never here:
data for the kernel (compiler), or writing a file (runtime).
"""
