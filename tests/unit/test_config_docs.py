"""docs/configuration.md is what pipeline/config.py says, and says something of every key."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_page_is_up_to_date():
    command = [sys.executable, str(ROOT / "scripts" / "config_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_key_is_explained():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    silent = [line for line in page.splitlines() if line.startswith("| `") and "|  |" in line]
    assert silent == []
