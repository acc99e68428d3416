import os
import subprocess

import pytest

from tests import busybox
from tests.lab.daemons import tool
from tests.lab.netns import Namespace


@pytest.fixture(scope="session")
def able() -> None:
    """Skip the test if no router can run here."""
    lacking = [f"the program {name}" for name in ("nft", "ip") if tool(name) is None]
    lacking += filter(None, ["root" if os.geteuid() else "", busybox.missing()])
    if lacking:
        pytest.skip(f"a router needs {', '.join(lacking)}")
    try:
        with Namespace("able") as space:
            space.nft("table inet able {\n}\n")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no network namespaces with nf_tables here: {error}")
