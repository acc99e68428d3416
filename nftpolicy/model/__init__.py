# SPDX-License-Identifier: BSD-2-Clause
"""How Linux decides on a state: the walk of one packet, and of all packets. Pure.

Empty as yet: the walk and the prover come next.
"""
