"""What the documents claim about the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_lists_the_settings_as_they_are() -> None:
    checked = subprocess.run(
        [sys.executable, "tools/readme_configuration.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    named = re.findall(r"`((?:kmscore|appliance|tests|tools|bench|enclave_image|docs)/[\w./-]+\.\w+)`", text)
    missing = [path for path in linked if not (document.parent / path).exists()]
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []
