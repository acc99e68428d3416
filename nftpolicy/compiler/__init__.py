# SPDX-License-Identifier: BSD-2-Clause
"""Compiler: policy to the desired network state (nft tables, ip rules, routes, sysctls).

Pure: no root, no kernel, any operating system. `compile.py` combines the parts.
Never here: reads of the kernel's current state.
"""
