"""Requirements of the kernel facts; a test whose requirement is missing is skipped, with the reason."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.netns import Namespace, search_path

from .two_link_node import TwoLinkNode


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    if os.geteuid():
        pytest.skip("facts about the kernel need root")
    for tool in ("ip", "nft"):
        if not shutil.which(tool, path=search_path()):
            pytest.skip(f"{tool} is not installed")
    try:
        with Namespace("able") as space:
            space.nft("table inet able {\n}\n")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no network namespaces with nf_tables here: {error}")


@pytest.fixture(scope="session")
def egress(able: None) -> None:
    """Skip the test if the kernel has no netdev egress hook."""
    chain = 'table netdev able {\n chain c {\n  type filter hook egress device "lo" priority 0\n }\n}\n'
    with Namespace("able") as space:
        done = space.nft(chain, check=False)
    if done.returncode:
        pytest.skip(f"no netdev egress hook (CONFIG_NETFILTER_EGRESS): {done.stderr.splitlines()[0]}")


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace("node") as space:
        yield space


@pytest.fixture
def far() -> Iterator[Namespace]:
    with Namespace("far") as space:
        yield space


@pytest.fixture
def two_links(node: Namespace, far: Namespace) -> Iterator[TwoLinkNode]:
    with TwoLinkNode(node, far) as made:
        yield made
