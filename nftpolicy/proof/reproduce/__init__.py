# SPDX-License-Identifier: BSD-2-Clause
"""A counterexample as a shell script that sends the packet in a network namespace of its own. Pure.

Belongs here: the script, its links, its sending program. Never here: running the script.
"""
