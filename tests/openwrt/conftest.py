import os
import subprocess

import pytest

from tests.lab.daemons import tool
from tests.lab.netns import Namespace


@pytest.fixture(scope="session")
def able() -> None:
    """Skips where there can be no router."""
    lacking = [name for name in ("busybox", "nft", "ip") if tool(name) is None]
    if os.geteuid() or lacking:
        pytest.skip(f"a router needs root, and {', '.join(lacking) or 'a kernel'}")
    try:
        with Namespace("able") as space:
            space.nft("table inet able {\n}\n")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no network namespaces with nf_tables here: {error}")
