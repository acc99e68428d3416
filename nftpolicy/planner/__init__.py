# SPDX-License-Identifier: BSD-2-Clause
"""Planner: the difference of two states, as steps in an order that never opens an uplink.

Pure. Never here: execution of steps, and the meaning of a policy.
"""
