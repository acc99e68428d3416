# SPDX-License-Identifier: BSD-2-Clause
"""What runs: changes of policy, the watch, the resolver, services, and looks at what is there.

A package for each thing that goes on for a while; a file for each look (status, explain, verify, imported).
Never here: output to a person (cli), nor how a kernel is reached (kernel).
"""
