# SPDX-License-Identifier: BSD-2-Clause
"""The command line: one thin file for each command. It reads words and prints; the rest computes."""
