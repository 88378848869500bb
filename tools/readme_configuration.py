"""Writes the table of environment variables into README.md from appliance/settings.py; `--check` only compares."""

import sys
from pathlib import Path

from appliance.settings import Settings

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- configuration: generated from appliance/settings.py, checked by a test -->\n"
END = "<!-- end of configuration -->\n"


def table() -> str:
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for variable in Settings.describe():
        alias = f" (alias `{variable.alias}`)" if variable.alias else ""
        rows.append(f"| `{variable.name}`{alias} | {variable.default_text} | {variable.help}; {variable.accepts} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = before + BEGIN + table() + END + after
    if "--check" not in sys.argv:
        README.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit("README.md does not list the settings as they are: run `python tools/readme_configuration.py`")


if __name__ == "__main__":
    main()
