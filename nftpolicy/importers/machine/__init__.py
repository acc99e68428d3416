# SPDX-License-Identifier: BSD-2-Clause
"""Drafts of a first policy from the facts about this machine. Pure: the runtime reads the facts."""
