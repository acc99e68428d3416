# SPDX-License-Identifier: BSD-2-Clause
"""Configurations of other programs, read into a NetState and a draft policy. Pure."""
