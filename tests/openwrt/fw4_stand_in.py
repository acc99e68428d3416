"""What firewall4 does to the kernel, as it was seen of the one of 2024-11: one transaction for its table and the
includes, and a table that is deleted for a moment, or all of them one by one."""

from pathlib import Path

from nftpolicy.integration.openwrt import tree

from .router import ROOT, Router

FIXTURES = Path(__file__).parents[1] / "fixtures"
RENDERED = ("default-router", "gluon-node")


class Fw4:
    """fw4 of one of the fixtures on a router."""

    def __init__(self, router: Router, name: str) -> None:
        self._router = router
        self._text = (FIXTURES / name / "rendered.nft").read_text()

    def whole(self) -> str:
        """What fw4 hands to nft: its own table, and the files of ruleset-post."""
        include = f'\ninclude "{ROOT}/{tree.GUARD_PATH}"\n' if self._router.file(tree.GUARD_PATH).exists() else ""
        return self._text + include

    def reload(self) -> None:
        """And start: its text begins with a flush of its own table."""
        self._router.space.nft(self.whole())

    def restart(self) -> None:
        self.stop()
        self.reload()

    def stop(self) -> None:
        self._router.space.nft("add table inet fw4\ndelete table inet fw4\n")

    def flush(self) -> None:
        """`fw4 flush`, which is what /etc/init.d/firewall stop does: every table, each in a transaction of its own."""
        for line in self._router.space.run(["nft", "list", "tables"]).stdout.splitlines():
            self._router.space.nft(f"delete {line}\n", check=False)
