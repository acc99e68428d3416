# SPDX-License-Identifier: BSD-2-Clause
"""Prove a policy's specification on a NetState: proved, refuted by a packet, or unknown. Pure.

Belongs here: the properties P1 to P5, their proofs, and counterexamples with scripts that
reproduce them. Never here: what Linux does with a packet (model/), or how a policy is compiled
(compiler/).
"""
