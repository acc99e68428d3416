# SPDX-License-Identifier: BSD-2-Clause
"""A policy to the state of the kernel that carries it out: guard, identity, ladder, dns, answers.

Pure: no root, no kernel, any operating system. `compile.py` puts the parts together.
Never here: anything about what the kernel holds now.
"""
