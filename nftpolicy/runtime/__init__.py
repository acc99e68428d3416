# SPDX-License-Identifier: BSD-2-Clause
"""Programs that run (apply, watch, resolver, services, probe, install) and read-only analyses.

One package for each program, one file for each analysis (status, explain, verify, import_openwrt).
Never here: output to a user (cli), and access to the kernel (kernel).
"""
