# SPDX-License-Identifier: BSD-2-Clause
"""Text for the programs that configure the network, so that they put an uplink's routes into its table.

One file per program: a function from a policy to files. Pure; knows the policy alone. Never here: anything for
the kernel (compiler), nor writing a file (runtime).
"""
