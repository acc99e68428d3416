"""Program file of a command, and the exit status without one, as in a shell."""

import pytest

from nftpolicy.policy import vocabulary
from nftpolicy.runtime.services.run import (
    MARKING_METHODS,
    NOT_EXECUTABLE,
    NOT_FOUND,
    ServiceStartError,
    find_program,
)


@pytest.fixture
def program_dir(tmp_path):
    for name, mode in (("good", 0o755), ("plain", 0o644)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "below").mkdir()
    (tmp_path / "dangling").symlink_to("none")
    return tmp_path


def test_program_is_found_by_path_and_by_name(program_dir):
    assert find_program(str(program_dir / "good"), {}) == program_dir / "good"
    assert find_program("good", {"PATH": f"/none:{program_dir}"}) == program_dir / "good"
    assert find_program("sh", {}).name == "sh", "without PATH, where programs usually are"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("none", NOT_FOUND),
        ("", NOT_FOUND),
        ("./none", NOT_FOUND),
        ("{}/none", NOT_FOUND),
        ("{}/good/none", NOT_FOUND),
        ("plain", NOT_EXECUTABLE),
        ("{}/plain", NOT_EXECUTABLE),
        ("{}/below", NOT_EXECUTABLE),
        ("{}/dangling", NOT_FOUND),
    ],
)
def test_unusable_program_has_the_status_of_a_shell(program_dir, command, status):
    with pytest.raises(ServiceStartError) as caught:
        find_program(command.format(program_dir), {"PATH": str(program_dir)})
    assert caught.value.status == status
    assert "\n" not in str(caught.value)


def test_every_marks_value_has_a_marking_method():
    assert list(MARKING_METHODS) == list(vocabulary.MARKS_VALUES)
