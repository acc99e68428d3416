# SPDX-License-Identifier: BSD-2-Clause
"""The resolver of an uplink: its engine, where its servers come from, and where they must not go."""
