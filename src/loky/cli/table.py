"""Plain text tables for the commands: columns as wide as their content, numbers to the right.

Does not belong here: deciding what is shown, or how a figure is rounded (the caller hands over
text or whole numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# One cell: a whole number is aligned to the right and gets thousands separators.
Cell = str | int


def format_table(header: Sequence[str], rows: Iterable[Sequence[Cell]], indent: int = 0) -> str:
    """Return a table as text.

    Parameters
    ----------
    header : sequence of str
        One name for each column.
    rows : iterable of sequences of str or int
        As many cells as the header has, in each row. A column is aligned to the right when its
        first cell is a number.
    indent : int
        Number of blanks before each line.

    Returns
    -------
    str
        Lines without trailing blanks, joined by newlines; the header, a rule, the rows.

    Raises
    ------
    ValueError
        When a row is not as long as the header.
    """
    content = list(rows)
    for row in content:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under {len(header)} columns: {row!r}")
    to_the_right = [isinstance(cell, int) for cell in content[0]] if content else []
    to_the_right += [False] * (len(header) - len(to_the_right))
    lines = [list(header)] + [[_text(cell) for cell in row] for row in content]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        (" " * indent + _join(line, widths, to_the_right)).rstrip()  # no blanks at the end
        for line in lines
    )


def _join(line: Sequence[str], widths: Sequence[int], to_the_right: Sequence[bool]) -> str:
    return "  ".join(
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(line, widths, to_the_right, strict=True)
    )


def _text(cell: Cell) -> str:
    return f"{cell:,}" if isinstance(cell, int) else cell
