"""The matrix games in closed form beside networks: Figure 5's ablations, and paths of policies.

The closed form is `tabular.in_sample`, which knows what the networks know: the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from inspo.components.schedules import hold_decay
from inspo.evaluation import paper
from inspo.evaluation.comparison import Data, Entry, Method
from inspo.evaluation.grid import Result
from inspo.evaluation.statistics import mean_std
from inspo.evaluation.tables import fixed, markdown_table, mean_pm_std
from inspo.tabular import in_sample
from inspo.tabular.game import Policies, joint_policy
from inspo.tabular.inspo import divergence, entropy
from inspo.tabular.paper_games import PAYOFF, dataset

SWEEPS = 400  # of the closed form; all of it has long converged by then
TILT = 0.01
SMALL_STEP = 0.05  # share of the way to the full response, in log-probabilities


# --------------------------------------------------------------------------------------------------
# Closed form


@dataclass(frozen=True)
class Ending:
    """Where the closed form ends: one joint policy `[A_1, A_2]`, or two that alternate."""

    joints: list[np.ndarray]
    returns: list[float]

    def words(self) -> str:
        if len(self.returns) == 1:
            return fixed(self.returns[0])
        return "cycle of " + " and ".join(fixed(value) for value in sorted(self.returns))


def closed_form(
    game: str,
    quality: str,
    alpha: float,
    beta: Callable[[float], float] | float = 0.0,
    start: str = "behaviour",
    step: float | None = None,
    sweeps: int = SWEEPS,
) -> list[Policies]:
    """Policies before every sweep and after the last one, `sweeps + 1` entries.

    beta: a number, or a function of the share of the sweeps done. start: behaviour; uniform;
    tilted (uniform, but agent 1 prefers its first action a little, as a random network may).
    step: None updates one agent after the other; a number in (0, 1] all at once, each that share
    of the way from its policy to its response (in log-probabilities; 1 is the paper's update).
    """
    data = dataset(game, quality)
    mu = data.behaviour()
    schedule = (lambda k: beta(k / sweeps)) if callable(beta) else beta
    initial = None if start == "behaviour" else [np.full_like(m, 1 / m.shape[-1]) for m in mu]
    if start == "tilted":
        initial[0][:, 0] += TILT
        initial[0][:, 1] -= TILT
    if step is None:
        trace = in_sample.iterate(
            data, alpha, schedule, sweeps=sweeps, initial=initial, order=[0, 1]
        )
        return trace.history
    policies = mu if initial is None else initial
    history = [policies]
    for k in range(sweeps):
        beta_k = schedule(k) if callable(schedule) else schedule
        answers = in_sample.simultaneous(data, policies, mu, alpha, beta_k)
        policies = [_towards(old, new, step) for old, new in zip(policies, answers)]
        history.append(policies)
    return history


def _towards(old: np.ndarray, new: np.ndarray, step: float) -> np.ndarray:
    """The normalised geometric mean old^(1 - step) new^step."""
    floor = math.exp(in_sample.LOG_FLOOR)
    logits = (1 - step) * np.log(np.maximum(old, floor)) + step * np.log(np.maximum(new, floor))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def ending(game: str, history: Sequence[Policies]) -> Ending:
    """The last joint policy, or the last two if the end is a cycle of two."""
    last, before = (joint_policy(policies)[0] for policies in (history[-1], history[-2]))
    joints = [last] if np.abs(last - before).max() < 1e-3 else [last, before]
    return Ending(joints, [float((joint * PAYOFF[game]).sum()) for joint in joints])


# --------------------------------------------------------------------------------------------------
# What networks did


def joint_of(test: Mapping[str, float]) -> np.ndarray:
    """The joint policy `[A_1, A_2]` of a test on a matrix game."""
    prefix = "test_joint_"
    entries = {key[len(prefix) :]: value for key, value in test.items() if key.startswith(prefix)}
    size = [max(int(key[i]) for key in entries) + 1 for i in range(2)]
    joint = np.zeros(size)
    for key, value in entries.items():
        joint[int(key[0]), int(key[1])] = value
    return joint


def marginals(joint: np.ndarray) -> Policies:
    """The policies `[1, A_i]` of a joint policy that factorises."""
    return [joint.sum(1)[None], joint.sum(0)[None]]


def beta_of(config: Mapping[str, Any]) -> Callable[[float], float]:
    """beta as a function of the share of the policies' training, as the learner has it."""
    return lambda share: hold_decay(
        config["beta"], config["beta_finish"], config["beta_hold"], config["beta_end"], share
    )


# --------------------------------------------------------------------------------------------------
# Figure 5


@dataclass(frozen=True)
class Condition:
    """One setting of an ablation. closed: what the closed form does with (alpha, beta schedule)."""

    key: str
    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    closed: Callable[[float, Callable[[float], float]], list[Policies]] | None = None

    def method(self) -> Method:
        return Method(self.key, "inspo", self.label, self.overrides)


@dataclass(frozen=True)
class Ablation:
    """A part of Figure 5. optimum: the return that InSPO reaches with everything on."""

    title: str
    data: Data
    game: str
    quality: str
    optimum: float
    printed: np.ndarray
    conditions: Sequence[Condition]


def _m_ne(start: str = "behaviour", entropic: bool = False):
    return lambda alpha, beta: closed_form(
        "m_ne", "imbalanced", alpha, beta if entropic else 0.0, start
    )


def _xor(step: float | None, entropic: bool = False, start: str = "behaviour"):
    return lambda alpha, beta: closed_form(
        "xor", "b", alpha, beta if entropic else 0.0, start, step
    )


def _game(key: str, label: str, map_name: str, quality: str) -> Data:
    return Data(key, label, "matrix_offline", {"map_name": map_name, "quality": quality})


ABLATIONS = (
    Ablation(
        "(a) Without entropy: M-NE, imbalanced data",
        _game("m_ne_imbalanced", "M-NE imbalanced", "m_ne", "imbalanced"),
        "m_ne",
        "imbalanced",
        20.0,
        np.array(paper.FIGURE_5A),
        (
            Condition("inspo", "with entropy, as in Table 2", {}, _m_ne(entropic=True)),
            Condition("no_entropy", "β = 0", {"beta": 0.0}, _m_ne()),
            Condition(
                "no_entropy_no_warmup",
                "β = 0, no critic warm-up",
                {"beta": 0.0, "critic_warmup": 0.0},
            ),
            Condition(
                "no_entropy_random_start",
                "β = 0, π⁰ random, not μ",
                {"beta": 0.0, "init_from_behaviour": False},
                _m_ne("uniform"),
            ),
        ),
    ),
    Ablation(
        "(b) Without sequential updates: XOR, dataset (b)",
        _game("xor_b", "XOR (b)", "xor", "b"),
        "xor",
        "b",
        1.0,
        np.array(paper.FIGURE_5B),
        (
            Condition("inspo", "sequential, as in Table 1", {}, _xor(None, entropic=True)),
            Condition(
                "simultaneous",
                "simultaneous",
                {"update": "simultaneous"},
                _xor(SMALL_STEP, entropic=True),
            ),
            Condition(
                "simultaneous_no_entropy",
                "simultaneous, β = 0",
                {"update": "simultaneous", "beta": 0.0},
                _xor(SMALL_STEP),
            ),
            Condition(
                "simultaneous_no_warmup",
                "simultaneous, β = 0, no critic warm-up",
                {"update": "simultaneous", "beta": 0.0, "critic_warmup": 0.0},
            ),
            Condition(
                "simultaneous_random_start",
                "simultaneous, β = 0, π⁰ random",
                {"update": "simultaneous", "beta": 0.0, "init_from_behaviour": False},
                _xor(SMALL_STEP, start="tilted"),
            ),
            Condition(
                "simultaneous_large_steps",
                "simultaneous, β = 0, large steps",
                {"update": "simultaneous", "beta": 0.0, "lr": 0.05},
                _xor(1.0),
            ),
        ),
    ),
)

FIGURE_5_CAPTION = f"""\
The paper's two ablations, with networks and in closed form, and under which conditions they fail.
Returns are exact expectations of the final policies (no sampling). The closed form is the
in-sample one (`src/tabular/in_sample.py`) with {SWEEPS} sweeps. For simultaneous updates its step
is {SMALL_STEP:g} of the way to the full response where the networks take one small step an agent
and batch, and the full response (Eq. 12) beside the networks' large steps (learning rate 0.05
instead of 0.0005). The closed form has no critic to warm up. Its random start is the uniform
policy, for XOR with agent 1 tilted by {TILT:g} towards A: exact arithmetic never breaks a tie, and
from a symmetric start both agents stay alike for ever, on a saddle; the networks' draws break it.
"At the optimum": the return is within 5 % of what InSPO reaches with everything on."""


def settle(ablation: Ablation, config: Mapping[str, Any]) -> dict[str, Ending]:
    """Where the closed form ends in each condition, with the temperatures of `config`."""
    return {
        condition.key: ending(ablation.game, condition.closed(config["alpha"], beta_of(config)))
        for condition in ablation.conditions
        if condition.closed
    }


def at_optimum(ablation: Ablation, value: float) -> bool:
    return value > ablation.optimum - 0.05 * abs(ablation.optimum)


def ablation_table(
    ablation: Ablation,
    endings: Mapping[str, Ending],
    runs: Mapping[str, Sequence[Result]],
    n_seeds: int,
) -> str:
    """The conditions of one ablation: closed form, networks, who reaches the optimum."""
    rows = []
    for condition in ablation.conditions:
        values = [run.final["test_expected_return"] for run in runs.get(condition.key, ())]
        closed = endings.get(condition.key)
        reached = sum(at_optimum(ablation, value) for value in values)
        missing = n_seeds - len(values)
        rows.append(
            [
                condition.label,
                closed.words() if closed else "–",
                mean_pm_std(*mean_std(values)) if values else "missing",
                f"{reached} of {len(values)}" + (f" ({missing} missing)" if missing else ""),
                "; ".join(fixed(value) for value in values) or "–",
            ]
        )
    header = ["condition", "closed form", "networks", "at the optimum", "each seed"]
    return markdown_table(header, rows)


def draw_figure5(
    path: Path,
    endings: Mapping[str, Mapping[str, Ending]],
    runs: Mapping[str, Mapping[str, Sequence[Result]]],
) -> Path:
    """Heat maps of final joint policies: the paper's, closed form above networks."""
    from inspo.evaluation import plots

    blocks = []
    for ablation in ABLATIONS:
        ends, made = endings[ablation.data.key], runs[ablation.data.key]
        printed_return = float((ablation.printed * PAYOFF[ablation.game]).sum())
        closed: list[plots.Map | None] = [
            plots.Map(ablation.printed, f"return {fixed(printed_return)}")
        ]
        networks: list[plots.Map | None] = [None]
        for condition in ablation.conditions:
            end, done = ends.get(condition.key), made.get(condition.key, ())
            closed.append(end and plots.Map(end.joints[0], end.words()))
            values = [run.final["test_expected_return"] for run in done]
            caption = f"{mean_pm_std(*mean_std(values))}, n = {len(values)}" if values else ""
            networks.append(plots.Map(joint_of(done[0].final), caption) if done else None)
        columns = ["the paper's figure", *(_broken(c.label) for c in ablation.conditions)]
        rows = {"closed\nform": closed, "networks": networks}
        blocks.append(plots.Block(ablation.title, columns, rows))
    return plots.joint_blocks(
        path,
        "Figure 5: what InSPO without entropy, and without sequential updates, ends in",
        blocks,
        note="Down: action of agent 1; across: action of agent 2. Below each map: the expected "
        "return; networks: the first seed's map, mean ± std of all. Every seed: figure5.md.",
    )


def draw_figure3(entries: Sequence[Entry], path: Path) -> Path:
    """Heat maps of the final joint policies on XOR (b): the paper's above ours."""
    from inspo.evaluation import plots

    printed: list[plots.Map | None] = []
    ours: list[plots.Map | None] = []
    for entry in entries:
        joint = paper.FIGURE_3.get(entry.method.key)
        value = joint and float((np.array(joint) * PAYOFF["xor"]).sum())
        printed.append(joint and plots.Map(np.array(joint), f"return {fixed(value)}"))
        spread = f"{mean_pm_std(entry.mean, entry.std)}, n = {len(entry.values)}"
        first = next(iter(entry.runs.values()), None)
        ours.append(first and plots.Map(joint_of(first.final), spread))
    columns = [_broken(entry.method.label) for entry in entries]
    rows = {"the\npaper": printed, "ours": ours}
    return plots.joint_blocks(
        path,
        "Figure 3: final joint policies on XOR, dataset (b)",
        [plots.Block("", columns, rows)],
        note="Down: action of agent 1; across: action of agent 2. Below each map: the expected "
        "return; ours: the first seed's map, mean ± std of all. Every seed: figure3.md.",
    )


def _broken(label: str, width: int = 22) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(label, width))


# --------------------------------------------------------------------------------------------------
# Paths


@dataclass(frozen=True)
class PolicyPath:
    """How joint policies went: share of the policies' training `[K]`, joints `[K, A_1, A_2]`."""

    share: np.ndarray
    joints: np.ndarray
    betas: np.ndarray


def path_of_network(result: Result) -> PolicyPath:
    """From the tests of a run, beginning where the policies begin to be trained."""
    config = result.config
    warmup = config["critic_warmup"]
    share = np.array([test["t_env"] / config["t_max"] for test in result.tests])
    share = np.clip((share - warmup) / (1 - warmup), -1, 1)
    # The last test of the warm-up is that of pi^0.
    first = max(int(np.searchsorted(share, 0.0, side="right")) - 1, 0)
    share = np.clip(share[first:], 0, 1)
    joints = np.stack([joint_of(test) for test in result.tests[first:]])
    return PolicyPath(share, joints, np.array([beta_of(config)(s) for s in share]))


def path_of_closed_form(game: str, quality: str, config: Mapping[str, Any]) -> PolicyPath:
    history = closed_form(game, quality, config["alpha"], beta_of(config))
    share = np.linspace(0, 1, len(history))
    joints = np.stack([joint_policy(policies)[0] for policies in history])
    return PolicyPath(share, joints, np.array([beta_of(config)(s) for s in share]))


def potential(game: str, joint: np.ndarray, mu: Policies, alpha: float, beta: float) -> float:
    """Phi = E_pi[R] - alpha sum_i KL(pi_i || mu_i) + beta sum_i H(pi_i) of one joint policy."""
    policies = marginals(joint)
    kl = sum(float(divergence(p, m)[0]) for p, m in zip(policies, mu))
    disorder = sum(float(entropy(p)[0]) for p in policies)
    return float((joint * PAYOFF[game]).sum()) - alpha * kl + beta * disorder


def rise(game: str, quality: str, path: PolicyPath, alpha: float) -> np.ndarray:
    """How far Phi has risen, `[K]`: the sum of its steps, each at the beta of that step.

    With a constant beta this is Phi - Phi(pi^0). While beta falls Phi falls with it, which is the
    schedule's doing and not the policies'; this sum leaves that out.
    """
    mu = dataset(game, quality).behaviour()
    steps = [0.0]
    for k in range(len(path.joints) - 1):
        ends = (potential(game, path.joints[j], mu, alpha, path.betas[k]) for j in (k, k + 1))
        before, after = ends
        steps.append(after - before)
    return np.cumsum(steps)


def draw_paths(path: Path, runs: Mapping[tuple[str, str], Result]) -> Path:
    """For each game: joint actions over training, and the potential's rise; both forms."""
    from inspo.evaluation import plots
    from matplotlib import pyplot as plt

    colours = ["#2e6f95", "#d1495b", "#3a9c97", "#e8a04c", "#7d5ba6"]
    names = {"xor": "XOR", "m_ne": "M-NE"}
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            len(runs), 2, figsize=(11.5, 3.2 * len(runs) + 0.9), squeeze=False, width_ratios=[3, 2]
        )
        for (left, right), ((game, quality), result) in zip(axes, runs.items()):
            both = {
                "closed form": path_of_closed_form(game, quality, result.config),
                "network": path_of_network(result),
            }
            shown = _most_seen(both, 4)
            for rank, index in enumerate(shown):
                colour = colours[rank]
                label = "".join(chr(ord("A") + k) for k in index)
                for name, way in both.items():
                    left.plot(
                        way.share, way.joints[:, index[0], index[1]], color=colour,
                        ls="-" if name == "network" else (0, (1.5, 1.5)),
                        lw=1.8 if name == "network" else 2.4,
                        label=f"({label[0]}, {label[1]})" if name == "network" else None,
                    )  # fmt: skip
            alpha = result.config["alpha"]
            for name, way in both.items():
                right.plot(
                    way.share, rise(game, quality, way, alpha), color=plots.INK,
                    ls="-" if name == "network" else (0, (1.5, 1.5)), label=name,
                )  # fmt: skip
            beta = result.config["beta"]
            if beta:
                hold, end = result.config["beta_hold"], result.config["beta_end"]
                left.axvspan(0, hold, color=plots.GRID, alpha=0.55, lw=0)
                left.axvspan(hold, end, color=plots.GRID, alpha=0.28, lw=0)
                for x, words in (
                    (0.01, f"β = {beta:g}"),
                    (hold + 0.01, "β falls"),
                    (end, " β = 0"),
                ):
                    left.text(x, 1.02, words, fontsize=8, color=plots.MUTED)
            returns = " and ".join(
                f"{fixed(float((way.joints[-1] * PAYOFF[game]).sum()))} ({name})"
                for name, way in both.items()
            )
            left.set(xlabel="share of the policies' training", ylabel="probability of joint action")
            left.set_ylim(-0.03, 1.09)
            left.set_title(f"{names[game]} {quality}: return {returns}", fontsize=10)
            left.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="joint action")
            right.set_title("Rise of the potential Φ", fontsize=10)
            right.set(
                xlabel="share of the policies' training", ylabel="Φ − Φ(π⁰), at each step's β"
            )
            right.legend(loc="best")
        figure.suptitle(
            "Paths of the joint policy: closed form (dotted) and networks (solid)",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.supxlabel(
            "Φ = E[R] − α Σ KL(πᵢ ‖ μᵢ) + β Σ H(πᵢ), summed over steps at the β of each. It rises "
            "in every sweep where the data show all of the game (Prop. 4);\nXOR (b) lacks (B, B), "
            "whose payoff Φ counts and the data do not know, and there it may fall.",
            x=0.01, ha="left", fontsize=8, color=plots.MUTED,
        )  # fmt: skip
        return plots.save(figure, path)


def _most_seen(both: Mapping[str, PolicyPath], count: int) -> list[tuple[int, ...]]:
    """The joint actions that were most probable at any time, in the order of their names."""
    peak = np.max([way.joints.max(0) for way in both.values()], axis=0)
    order = np.argsort(-peak.ravel(), kind="stable")[:count]
    return sorted(tuple(int(k) for k in np.unravel_index(i, peak.shape)) for i in order)
