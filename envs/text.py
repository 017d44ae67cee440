"""Numbers and names as text, for tables and pictures."""

from __future__ import annotations

import math
import re


def readable(value: float) -> str:
    """A return as text: decimals where it is small, as a success rate is."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}"


def compact(value: float) -> str:
    """A number of any size in at most 8 characters: -5.4e-06, 0.0012, 1234."""
    return readable(value) if value == 0.0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2g}"


def with_interval(mean: float, interval: tuple[float, float] | None) -> tuple[str, str]:
    """A mean and its interval, "[low, high]", all three with the same number of decimals.

    Three digits of the largest of them, and no decimals from 100 on; three decimals from 0.01 to 1.
    Without an interval (None) the second is empty.
    """
    if interval is None:
        return readable(mean), ""
    numbers = (mean, *interval)
    largest = max(abs(number) for number in numbers)
    digits = 0 if largest == 0.0 else 1 + math.floor(math.log10(largest))
    places = 3 if 0.01 <= largest < 1.0 else max(0, 3 - digits)
    shown = [f"{number:.{places}f}" for number in numbers]
    return shown[0], f"[{shown[1]}, {shown[2]}]"


def counted(number: int, what: str) -> str:
    """A number of things, in the singular for one: "1 episode", "1,200 episodes"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_time(seconds: float) -> str:
    """A duration as text: 0.49 s, 244 s, 20 min, 2.5 h."""
    for least, unit, name in ((7200.0, 3600.0, "h"), (300.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


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


def literal(text: str) -> str:
    """A text on one line of Markdown that shows just that: no link, picture or code of its own."""
    return re.sub(r"[\\`*\[\]<]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """A name as code in Markdown; as plain text where it would end the code itself."""
    return literal(text) if "`" in text else f"`{' '.join(text.split())}`"
