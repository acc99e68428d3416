# SPDX-License-Identifier: BSD-2-Clause
"""Rulesets applied to sets of packets: header spaces as boxes of field intervals.

Belongs here: which packets a chain accepts, and which marks rules can set. Never here: the trace of one packet.
"""
