# SPDX-License-Identifier: BSD-2-Clause
"""Policy files: the classes of a policy, the TOML decoder, validation and warnings that need no kernel.

Never here: compilation of a policy, and reads from the system.
"""
