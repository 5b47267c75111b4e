"""What the README shows, cut out of it: tests run exactly what readers paste."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_BLOCK = r"^```{language}\n(.*?)^```$"


def section(title: str) -> str:
    """A section's text, with its subsections."""
    text = README.read_text()
    found = re.search(rf"^(##+) {re.escape(title)}$", text, re.MULTILINE)
    assert found, f"the README has no section {title!r}"
    rest = text[found.end() :]
    following = re.search(rf"^#{{2,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in their order."""
    return re.findall(_BLOCK.format(language=language), text, re.MULTILINE | re.DOTALL)
