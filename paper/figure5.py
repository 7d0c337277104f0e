"""The paper's Figure 5: InSPO without entropy, and without sequential updates.

Networks beside the closed form, under several conditions: those of `tables/figure5.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inspo.experiments.cells import Key
from inspo.experiments.comparison import (
    cells_of,
    compare,
    finished_runs,
    origin,
    recorded_runs,
    to_record,
    to_rows,
)
from inspo.experiments.entries import Comparison, Entry
from inspo.experiments.records import Run
from inspo.experiments.tables import (
    NONE,
    fixed,
    markdown_table,
    mean_pm_std,
    write_csv,
    write_json,
    write_text,
)
from inspo.tabular.matrix_games import payoff_tensor
from paper.closed_form import Ending, beta_of, closed_form, ending
from paper.heat_maps import Block, Map, draw_blocks, in_lines, joint_of
from paper.options import Options, changed
from paper.reader import comparison_of, read_file
from paper.tables import failures, run_missing


@dataclass(frozen=True)
class Ablation:
    """A part of the figure. content: what its file says of it."""

    comparison: Comparison
    content: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.comparison.datasets[0].key

    @property
    def game(self) -> str:
        return self.comparison.datasets[0].overrides["map_name"]

    @property
    def printed(self) -> np.ndarray:
        """The joint policy `[A_1, A_2]` of the paper's figure."""
        return np.array(self.content["joint_policy"])

    def at_optimum(self, value: float) -> bool:
        """Whether a return is within 5 % of what InSPO reaches with everything on."""
        optimum = self.content["optimum"]
        return value > optimum - 0.05 * abs(optimum)

    def endings(self, config: Mapping[str, Any]) -> dict[str, Ending]:
        """Where the closed form ends, by condition, with the temperatures of `config`."""
        quality = self.comparison.datasets[0].overrides["quality"]
        ends = {}
        for key, method in self.content["methods"].items():
            if "closed_form" in method:
                form = dict(method["closed_form"])
                beta = beta_of(config) if form.pop("entropy", False) else (lambda share: 0.0)
                history = closed_form(self.game, quality, config["alpha"], beta, **form)
                ends[key] = ending(self.game, history)
        return ends


def ablations(seeds: int | None = None) -> list[Ablation]:
    """The parts of the figure. seeds: how many, in place of the file's."""
    content = read_file("figure5")
    parts = [content | {"caption": ""} | part for part in content["parts"].values()]
    return [Ablation(comparison_of("figure5", part, seeds), part) for part in parts]


def reproduce(options: Options) -> bool:
    """Run what is missing of Figure 5, and write it; whether nothing failed."""
    parts = ablations(options.seeds)
    folder, stem = options.results / "runs" / "paper", options.results / "paper" / "figure5"
    cells = changed(
        {key: cell for part in parts for key, cell in cells_of(part.comparison).items()},
        options.changes,
    )
    endings = {
        part.key: part.endings(cells[part.key, "inspo", 0].config().values) for part in parts
    }
    finished_runs(cells, folder)  # a run of another configuration is an error before any starts
    recorded = recorded_runs(parts[0].comparison, cells, stem.parent, folder)
    missing = [cell for key, cell in cells.items() if not (options.fill and key in recorded)]
    report = run_missing(missing, options, folder, "figure5")
    paths = write_files(stem, parts, endings, recorded | finished_runs(cells, folder))
    print(paths[0].read_text())
    print("written:", *paths, sep="\n  ")
    return not failures(report)


def write_files(
    stem: Path,
    parts: Sequence[Ablation],
    endings: Mapping[str, Mapping[str, Ending]],
    runs: Mapping[Key, Run],
) -> list[Path]:
    """`{stem}.md`, `.csv`, `.json` and `.png`. endings: part -> condition -> closed form."""
    caption = read_file("figure5")["caption"]
    entries = {part.key: compare(part.comparison, runs) for part in parts}
    text = ["# Figure 5: ablations", caption]
    record: dict[str, Any] = {"name": "figure5", "caption": caption}
    for part in parts:
        own, ends = entries[part.key], endings[part.key]
        text += [f"## {part.comparison.title}", ablation_table(part, ends, own)]
        text += [origin(part.comparison, own)]
        record[part.key] = to_record(part.comparison, own) | {
            "paper": part.printed.tolist(),
            "closed_form": {
                name: {"returns": end.returns, "joints": [joint.tolist() for joint in end.joints]}
                for name, end in ends.items()
            },
        }
    rows = [row for part in parts for row in to_rows(part.comparison, entries[part.key])]
    return [
        write_text(f"{stem}.md", "\n\n".join(part for part in text if part) + "\n"),
        write_csv(f"{stem}.csv", rows),
        write_json(f"{stem}.json", record),
        draw_figure5(Path(f"{stem}.png"), parts, endings, entries),
    ]


def ablation_table(part: Ablation, endings: Mapping[str, Ending], entries: Sequence[Entry]) -> str:
    """The conditions of one ablation: closed form, networks, how many reach the optimum."""
    rows = []
    for entry in entries:
        values, missing = list(entry.values.values()), len(entry.missing)
        end = endings.get(entry.method.key)
        reached = sum(map(part.at_optimum, values))
        rows.append(
            [
                entry.method.label,
                str(end) if end else NONE,
                mean_pm_std(entry.mean, entry.std) if values else "missing",
                f"{reached} of {len(values)}" + (f" ({missing} missing)" if missing else ""),
                "; ".join(fixed(value) for value in values) or NONE,
                over_the_run(part.comparison.metric, entry),
            ]
        )
    header = ["condition", "closed form", "networks", "at the optimum", "each seed", "over the run"]
    return markdown_table(header, rows)


def over_the_run(metric: str, entry: Entry) -> str:
    """The mean of each seed's tests, where they are kept: `0.98; 0.97`."""
    tests = [[test[metric] for test in run.tests if metric in test] for run in entry.runs.values()]
    return "; ".join(fixed(float(np.mean(own))) for own in tests if len(own) > 1) or NONE


def draw_figure5(
    path: Path,
    parts: Sequence[Ablation],
    endings: Mapping[str, Mapping[str, Ending]],
    entries: Mapping[str, Sequence[Entry]],
) -> Path:
    """Heat maps of final joint policies: the paper's, closed form above networks."""
    blocks = []
    for part in parts:
        printed_return = float((part.printed * payoff_tensor(part.game)).sum())
        closed: list[Map | None] = [Map(part.printed, f"return {fixed(printed_return)}")]
        networks: list[Map | None] = [None]
        columns = ["the paper's figure"]
        for entry in entries[part.key]:
            columns.append(in_lines(entry.method.label))
            end = endings[part.key].get(entry.method.key)
            closed.append(Map(end.joints[0], str(end)) if end else None)
            first = next(iter(entry.runs.values()), None)
            caption = f"{mean_pm_std(entry.mean, entry.std)}, n = {len(entry.values)}"
            networks.append(Map(joint_of(first.final), caption) if first else None)
        rows = {"closed\nform": closed, "networks": networks}
        blocks.append(Block(part.comparison.title, columns, rows))
    return draw_blocks(
        path,
        "Figure 5: what InSPO without entropy, and without sequential updates, ends in",
        blocks,
        note="Down: action of agent 1; across: action of agent 2. Below each map: the expected "
        "return; networks: the first seed's map, mean ± std of all. Every seed: figure5.md.",
    )
