# SPDX-License-Identifier: BSD-2-Clause
"""Services: start of programs with mark, group and user; socket classification; readiness."""
