# SPDX-License-Identifier: BSD-2-Clause
"""Entry point of `python -m nftpolicy`, the same as `nftpolicy`."""

import os
import sys

# Python puts the working directory first, where another user may have put modules. Only the directory of
# this package may stand there.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH109, PTH120
    del sys.path[0]

from .cli.main import main

main()
