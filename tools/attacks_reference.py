"""Writes the tables of docs/attacks.md from the registry of attacks, below the line that says so.

    python tools/attacks_reference.py

What stands above that line is written by hand. A test fails where the document and the registry differ.
"""

from pathlib import Path

from sameguard.cli.thief import needed_flags
from sameguard.evaluation.attack_offers import MEANINGS, offers

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "attacks.md"
LINE = "<!-- Written by tools/attacks_reference.py from src/sameguard/evaluation/attack_offers.py: change that. -->\n"


def rewritten(document: str) -> str:
    """The document with tables of the attacks as they are now."""
    return document[: document.index(LINE) + len(LINE)] + _attacks() + _options()


def _attacks() -> str:
    rows = []
    for offer in offers():
        needs = ", ".join(f"`{flag.split()[0]}`" for flag in needed_flags(offer.needs)) or "nothing"
        rows.append(f"| `{offer.name}` | {needs} | {', '.join(f'`{option.shown}`' for option in offer.options.values()) or 'none'} |\n")
    return "\n## What each needs and takes\n\n| attack | needs | options, with their defaults |\n|---|---|---|\n" + "".join(rows)


def _options() -> str:
    rules = {option.name: option.rule for offer in offers() for option in offer.options.values()}
    rows = [f"| `{name}` | {rules[name]} | {MEANINGS[name]} |\n" for name in sorted(rules)]
    return "\n## What the options mean\n\n| option | value | meaning |\n|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
