"""Writing results: Markdown, CSV and JSON, each in one move, so that a kill leaves the old file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspo.utils import files
from inspo.utils.errors import UserError

NONE = "–"  # in a table: there is no such number


def write_text(path: str | Path, text: str) -> Path:
    """Replace a file by `text` in one move; UserError if it cannot be written."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    path = Path(path)
    try:
        files.write(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Pretty JSON; lists of plain numbers on one line each, so that raw values stay readable."""
    return write_text(path, to_json(content) + "\n")


def to_json(content: Any, indent: str = "") -> str:
    """
    >>> print(to_json({"a": [1, 2], "b": [{"c": None}]}))
    {
      "a": [1, 2],
      "b": [
        {
          "c": null
        }
      ]
    }
    """
    deeper = indent + "  "
    if isinstance(content, Mapping) and content:
        items = [f"{deeper}{json.dumps(str(k))}: {to_json(v, deeper)}" for k, v in content.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(content, list | tuple):
        if not any(isinstance(item, Mapping | list | tuple) for item in content):
            return "[" + ", ".join(to_json(item) for item in content) + "]"
        items = [deeper + to_json(item, deeper) for item in content]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    if isinstance(content, float) and not math.isfinite(content):
        return "null"  # JSON has no nan
    return json.dumps(content, ensure_ascii=False)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows of dictionaries; columns in the order of first appearance; None and nan are empty."""
    import pandas as pd

    table = pd.DataFrame(list(rows), dtype=object)
    return write_text(path, table.to_csv(index=False, lineterminator="\n"))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> str:
    """A Markdown table, padded so that the source reads well; from column `numbers` on centred.

    >>> print(markdown_table(["a", "b"], [["x", "1"]]))
    | a   |  b  |
    | --- | :-: |
    | x   |  1  |
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if i < numbers else text.center(width)
            for i, (text, width) in enumerate(zip(row, widths))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < numbers else ":" + "-" * (w - 2) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *map(line, rows)])


def mean_pm_std(mean: float, std: float, digits: int = 2) -> str:
    """`0.23 ± 0.01`; without the deviation where it is not known. No negative zero.

    >>> mean_pm_std(-0.001, 0.0), mean_pm_std(20.0, float("nan"))
    ('0.00 ± 0.00', '20.00')
    """
    text = fixed(mean, digits)
    return text if math.isnan(std) else f"{text} ± {fixed(std, digits)}"


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many digits, a true minus sign, and no negative zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"
