# SPDX-License-Identifier: BSD-2-Clause
"""From one state of the kernel to another: apply, release, recover, trials, history, and what is left over then.

Nothing here waits for the kernel to speak; that is `watch`.
"""
