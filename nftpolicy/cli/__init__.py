# SPDX-License-Identifier: BSD-2-Clause
"""Command line: one file for each command, for options and output; other packages compute."""
