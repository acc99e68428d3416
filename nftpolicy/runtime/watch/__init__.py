# SPDX-License-Identifier: BSD-2-Clause
"""Watch daemon: event loop, repairs, full check, and the auxiliary tables beside the guard.

It enforces the policy that was applied last. Policy changes are planned in `runtime.apply`.
"""
