"""A disk that is really full: a small tmpfs, where mounting is permitted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.small_disk import _MARK, enter_private_mounts

ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from benchmarks.small_disk import SmallDisk
from pipeline.errors import FullDiskError
from pipeline.ledger import Ledger

directory = Path(sys.argv[1])
disk = SmallDisk(directory / "run")
ledger = Ledger(directory / "run" / "ledger.sqlite", groups_per_step=1, max_staleness=0)
ledger.admit(0, "q", 0)
with disk.full(room=2**20):
    partial = directory / "run" / "partial"
    try:
        with partial.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError as error:
        print(error.strerror, partial.stat().st_size)
    try:
        ledger.buffer(0, bytes(2**20))
    except FullDiskError:
        print("no room for the group")
    print([str(row.state) for row in ledger.view().rows])
    partial.unlink()
    ledger.buffer(0, bytes(2**19))
    print([str(row.state) for row in ledger.view().rows])
(directory / "run" / "more").write_bytes(bytes(2**21))
disk.keep(directory / "kept")
"""


def test_a_full_disk_refuses_a_checkpoint_and_a_group_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(_MARK, raising=False)
    monkeypatch.setattr("os.execvpe", lambda *command: None)
    if why_not := enter_private_mounts("benchmarks.chaos", []):
        pytest.skip(f"mounting is not permitted: {why_not}")
    done = subprocess.run(
        [*("unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK),
         str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"No space left on device {2**20}",
        "no room for the group",
        "['rolling']",
        "['buffered']",
    ]
    assert list((tmp_path / "run").iterdir()) == []  # nobody else sees it
    assert (tmp_path / "kept" / "more").stat().st_size == 2**21
