# SPDX-License-Identifier: BSD-2-Clause
"""Starting the programs of services, and knowing when they are ready."""
