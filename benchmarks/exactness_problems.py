"""The drawn problems that guidances are measured on, written down before any was measured.

Settings may be chosen on the development half alone. Each row is a seed, a dimension and a kind of
energy of `qgpo.exact.draw_problem`.
"""

from __future__ import annotations

Row = tuple[int, int, str]

DEVELOPMENT: tuple[Row, ...] = (
    (0, 2, "constant"),
    (1, 2, "linear"),
    (2, 2, "quadratic"),
    (3, 4, "linear"),
    (4, 8, "constant"),
    (5, 16, "quadratic"),
)
VALIDATION: tuple[Row, ...] = (
    (100, 2, "constant"),
    (101, 2, "linear"),
    (102, 2, "quadratic"),
    (103, 4, "linear"),
    (104, 8, "constant"),
    (105, 16, "quadratic"),
)
