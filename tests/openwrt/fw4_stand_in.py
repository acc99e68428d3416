"""Effects of firewall4 (of 2024-11) on the kernel: one transaction for its table and the includes, and deletion of its
table, or of all tables one by one.
"""

from pathlib import Path

from nftpolicy.integration.openwrt import tree

from .router import ROOT, Router

FIXTURES = Path(__file__).parents[1] / "fixtures"
RENDERED = ("default-router", "gluon-node")


class Fw4:
    """Output of fw4 of one fixture, loaded on a router."""

    def __init__(self, router: Router, name: str) -> None:
        self._router = router
        self._text = (FIXTURES / name / "rendered.nft").read_text()

    def whole(self) -> str:
        """Return the text that fw4 passes to nft: its own table, and the files of ruleset-post."""
        include = f'\ninclude "{ROOT}/{tree.GUARD_PATH}"\n' if self._router.file(tree.GUARD_PATH).exists() else ""
        return self._text + include

    def reload(self) -> None:
        """Reload or start: the text begins with a flush of its own table."""
        self._router.space.nft(self.whole())

    def restart(self) -> None:
        self.stop()
        self.reload()

    def stop(self) -> None:
        self._router.space.nft("add table inet fw4\ndelete table inet fw4\n")

    def flush(self) -> None:
        """Run `fw4 flush`, as /etc/init.d/firewall stop does: every table, each in a transaction of its own."""
        for line in self._router.space.run(["nft", "list", "tables"]).stdout.splitlines():
            self._router.space.nft(f"delete {line}\n", check=False)
