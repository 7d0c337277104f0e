"""The paper's Figure 3: the final joint policies on XOR (b), all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from inspo.experiments.entries import Entry
from inspo.experiments.tables import fixed, mean_pm_std
from inspo.tabular.matrix_games import payoff_tensor
from paper.heat_maps import Block, Map, draw_blocks, in_lines, joint_of
from paper.options import Options
from paper.reader import read_file, read_table
from paper.tables import run_table, with_further

Joint = Sequence[Sequence[float]]  # [A_1][A_2]


def reproduce(options: Options) -> bool:
    """Run what is missing of Figure 3, and write it; whether nothing failed."""
    table = with_further(read_table("figure3", options.seeds), options)
    picture = partial(draw_figure3, read_file("figure3")["joint_policies"])
    return run_table(replace(table, comparison=replace(table.comparison, picture=picture)), options)


def draw_figure3(printed: Mapping[str, Joint], entries: Sequence[Entry], path: Path) -> Path:
    """Heat maps of the final joint policies: the paper's (by method) above ours."""
    above: list[Map | None] = []
    ours: list[Map | None] = []
    for entry in entries:
        joint = np.array(printed.get(entry.method.key, []))
        value = float((joint * payoff_tensor("xor")).sum()) if joint.size else 0.0
        above.append(Map(joint, f"return {fixed(value)}") if joint.size else None)
        spread = f"{mean_pm_std(entry.mean, entry.std)}, n = {len(entry.values)}"
        first = next(iter(entry.runs.values()), None)
        ours.append(Map(joint_of(first.final), spread) if first else None)
    columns = [in_lines(entry.method.label) for entry in entries]
    return draw_blocks(
        path,
        "Figure 3: final joint policies on XOR, dataset (b)",
        [Block("", columns, {"the\npaper": above, "ours": ours})],
        note="Down: action of agent 1; across: action of agent 2. Below each map: the expected "
        "return; ours: the first seed's map, mean ± std of all. Every seed: figure3.md.",
    )
