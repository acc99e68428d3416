"""The check for the egress hook, which is a transaction that the kernel does not commit."""

import pytest

from nftpolicy.kernel import linux


class Nft:
    def __init__(self, answer: str | None) -> None:
        self.answer, self.count = answer, 0

    def load(self, _: str, check: bool = False) -> str | None:
        assert check
        self.count += 1
        return self.answer


@pytest.mark.parametrize(
    ("device", "answer", "count"), [("lo", None, 1), ("lo", "refused", 3), ("eth0", None, 3), ("eth0", "refused", 3)]
)
def test_hook_of_lo_is_checked_once(
    monkeypatch: pytest.MonkeyPatch, device: str, answer: str | None, count: int
) -> None:
    monkeypatch.setattr(linux, "_hooked", set())
    nft, kernel = Nft(answer), linux.Linux()
    monkeypatch.setattr(kernel, "_nft", nft)
    assert [kernel.supports_egress_hook(device) for _ in range(3)] == [answer is None] * 3
    assert nft.count == count
