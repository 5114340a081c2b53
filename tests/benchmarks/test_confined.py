from pathlib import Path

import pytest

from benchmarks.confined import confined
from benchmarks.home import Skipped


@pytest.mark.parametrize("hierarchies", [(), ("memory", "cpu")], ids=["v2", "v1"])
def test_without_the_controllers_nothing_is_measured(tmp_path: Path, hierarchies: tuple[str, ...]) -> None:
    """A group whose limits cannot be set would let the service pass unconfined."""
    for name in hierarchies:
        (tmp_path / name).mkdir()
    with pytest.raises(Skipped, match="no control group can be made here"), confined(tmp_path):
        pytest.fail("entered a group without limits")
    assert not list(tmp_path.rglob("graft-*")), "every group is removed"
