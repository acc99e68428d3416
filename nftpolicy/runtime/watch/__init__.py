# SPDX-License-Identifier: BSD-2-Clause
"""Holding a policy: the loop that waits for the kernel, what it decides, and what it puts beside the guard.

Nothing here plans a change of policy; that is `changes`.
"""
