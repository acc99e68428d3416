# SPDX-License-Identifier: BSD-2-Clause
"""From one state to another: the difference, and the steps in an order that never opens the uplink.

Pure. Never here: how a step is carried out, and what a policy means.
"""
