# SPDX-License-Identifier: BSD-2-Clause
"""The command line: one file for each command, which reads options and prints; other packages compute."""
