# SPDX-License-Identifier: BSD-2-Clause
"""How Linux decides on a netstate: the walk of one packet, and the regions of all packets. Pure.

Belongs here: what the kernel does with rules, routes, hooks and expressions. Never here: what
ought to be so (proof/), what a policy means, or any question to a kernel.
"""
