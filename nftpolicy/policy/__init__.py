# SPDX-License-Identifier: BSD-2-Clause
"""What a person writes: the classes of a policy, TOML in, and the checks that need no kernel.

Never here: what a policy compiles to, and anything that asks the machine.
"""
