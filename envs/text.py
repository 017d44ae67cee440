"""Numbers and names as text, for tables and pictures."""

from __future__ import annotations

import re


def readable(value: float) -> str:
    """A return as text: decimals where it is small, as a success rate is."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}"


def wrap(text: str, width: int) -> str:
    """Lines of at most `width` characters, for matplotlib: broken after a space or punctuation.

    What matplotlib would read as a formula ($) or as no label (_ in front) stays text.
    """
    lines = [""]
    for part in re.findall(r"[^\s/_,+-]*[\s/_,+-]?", " ".join(text.split())):
        while len(lines[-1]) + len(part.rstrip()) > width:
            room = max(0, width - len(lines[-1])) if len(part) > width else 0
            lines[-1], part = (lines[-1] + part[:room]).rstrip(), part[room:]
            lines.append("")
        lines[-1] += part
    shown = "\n".join(line.rstrip() for line in lines if line.strip())
    return f"{' ' * shown.startswith('_')}{shown}".replace("$", r"\$")
