# SPDX-License-Identifier: BSD-2-Clause
"""The live leak test: what is sent, what is seen, and what follows from that."""
