# SPDX-License-Identifier: BSD-2-Clause
"""Output for a terminal: the trace of a packet, the report of a proof, tables."""
