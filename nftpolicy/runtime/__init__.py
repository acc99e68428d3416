# SPDX-License-Identifier: BSD-2-Clause
"""What runs: apply and release, status, the uplink's resolver.

Never here: output to a person (cli), nor how a kernel is reached (kernel).
"""
