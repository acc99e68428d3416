# SPDX-License-Identifier: BSD-2-Clause
"""Live leak test: probe packets, packet capture, and the verdict."""
