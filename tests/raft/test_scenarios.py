"""The cases of `scenarios/`, most of which etcd's raft has taught everybody to look at."""

from pathlib import Path

import pytest

from tests.raft.script import Script

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    Script(file).run()


def test_a_scenario_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "wrong.txt"
    file.write_text("sites 1\ncampaign 1\nexpect 1 is follower in term 2\n")
    with pytest.raises(AssertionError, match=r"wrong\.txt:3: .*\nseen: leader in term 2"):
        Script(file).run()
