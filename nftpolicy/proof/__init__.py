# SPDX-License-Identifier: BSD-2-Clause
"""What a policy promises, and whether a netstate keeps it: proved, refuted by a packet, or unknown. Pure.

Belongs here: the claims P1 to P5, how they are proved, and how a counterexample is shown.
Never here: how Linux decides (model/), how a policy is carried out (compiler/).
"""
