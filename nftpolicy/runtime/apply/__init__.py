# SPDX-License-Identifier: BSD-2-Clause
"""Change the kernel from one policy to another: apply, release, recover, confirm, history, cleanup.

Never here: waiting for netlink notifications (watch).
"""
