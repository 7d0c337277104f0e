"""The numbers of the InSPO paper (arXiv 2412.07639): Tables 1 to 4, Figures 3 and 5.

Mean and standard deviation over seeds 0 to 4, as printed. BC, OMAR and AlberDICE on Bridge are
Matsunaga et al.'s numbers, BC, OMAR and CFCQL on StarCraft II are Shao et al.'s.
"""

from __future__ import annotations

# Our name of an algorithm -> the paper's, in the order of its columns.
NAMES = {
    "bc": "BC",
    "omar": "OMAR",
    "alberdice": "AlberDICE",
    "cfcql": "CFCQL",
    "omiga": "OMIGA",
    "inspo": "InSPO",
}
# Those that the paper does not compare with.
FURTHER_NAMES = {"icq": "ICQ", "macql": "MACQL"}

Value = tuple[float, float]  # mean, standard deviation


def _row(*values: float | Value) -> dict[str, Value]:
    pairs = [value if isinstance(value, tuple) else (value, 0.0) for value in values]
    return dict(zip(NAMES, pairs, strict=True))


# (map, quality) -> algorithm -> (mean, std)
RETURNS: dict[tuple[str, str], dict[str, Value]] = {
    # Table 1
    ("xor", "a"): _row((0.00, 0.01), 1.0, 1.0, (-0.64, 0.71), (0.00, 0.01), 1.0),
    ("xor", "b"): _row((0.23, 0.01), -2.0, 1.0, (-0.38, 0.11), (0.21, 0.03), 1.0),
    ("xor", "c"): _row((0.00, 0.01), 0.0, 1.0, (-0.73, 0.48), (0.05, 0.00), 1.0),
    # Table 2
    ("m_ne", "balanced"): _row((-9.79, 0.41), 20.0, 20.0, 20.0, 20.0, 20.0),
    ("m_ne", "imbalanced"): _row((-3.47, 0.17), 5.0, 5.0, 5.0, 5.0, 20.0),
    # Table 3
    ("bridge", "optimal"): _row(
        (-2.21, 0.90), -6.01, (-1.27, 0.03), (-12.75, 1.60), (-9.87, 0.68), (-1.26, 0.00)
    ),
    ("bridge", "mixed"): _row(
        (-5.88, 0.49), -6.01, (-1.29, 0.00), (-13.79, 1.78), (-13.45, 0.42), (-1.27, 0.01)
    ),
}
# What Table 3 prints beside the names of the datasets: the mean return of the data.
DATA_RETURNS = {("bridge", "optimal"): -1.26, ("bridge", "mixed"): -4.56}

# Table 4, win rates on StarCraft II itself; the paper has no AlberDICE there.
WIN_RATES: dict[tuple[str, str], dict[str, Value]] = {
    ("2s3z", "medium"): {
        "bc": (0.16, 0.07), "omar": (0.15, 0.04), "cfcql": (0.40, 0.10),
        "omiga": (0.23, 0.01), "inspo": (0.23, 0.06),
    },
    ("2s3z", "medium_replay"): {
        "bc": (0.33, 0.04), "omar": (0.24, 0.09), "cfcql": (0.55, 0.07),
        "omiga": (0.42, 0.02), "inspo": (0.58, 0.09),
    },
    ("2s3z", "expert"): {
        "bc": (0.97, 0.02), "omar": (0.95, 0.04), "cfcql": (0.99, 0.01),
        "omiga": (0.98, 0.02), "inspo": (0.99, 0.01),
    },
    ("2s3z", "mixed"): {
        "bc": (0.44, 0.06), "omar": (0.60, 0.04), "cfcql": (0.84, 0.09),
        "omiga": (0.62, 0.03), "inspo": (0.85, 0.04),
    },
}  # fmt: skip

# Final joint policies as the figures print them. Rows are agent 2's actions, columns agent 1's;
# here, as everywhere in the program, [a_1][a_2].
FIGURE_5A = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]  # InSPO w/o entropy, M-NE imb.
FIGURE_5B = [[0.44, 0.21], [0.23, 0.12]]  # InSPO w/o SPO, XOR (b)
# The numbers of Figure 5b, all non-zero, sum to 1 and factorise: it is a joint policy of two
# independent agents, each at about two thirds for A, that is the behaviour policy of dataset (b).
