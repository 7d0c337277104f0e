"""The numbers of the InSPO paper (arXiv 2412.07639): Tables 1 to 7, Figures 3 and 5.

Mean and standard deviation over seeds 0 to 4, as printed. BC, OMAR and AlberDICE on Bridge are
Matsunaga et al.'s numbers, BC, OMAR and CFCQL on StarCraft II are Shao et al.'s.
"""

from __future__ import annotations

import math

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
    ("3s_vs_5z", "medium"): {
        "bc": (0.08, 0.02), "omar": (0.00, 0.00), "cfcql": (0.28, 0.03),
        "omiga": (0.02, 0.02), "inspo": (0.17, 0.05),
    },
    ("3s_vs_5z", "medium_replay"): {
        "bc": (0.01, 0.01), "omar": (0.00, 0.00), "cfcql": (0.12, 0.04),
        "omiga": (0.02, 0.01), "inspo": (0.10, 0.05),
    },
    ("3s_vs_5z", "expert"): {
        "bc": (0.98, 0.02), "omar": (0.64, 0.08), "cfcql": (0.99, 0.01),
        "omiga": (0.98, 0.02), "inspo": (0.99, 0.01),
    },
    ("3s_vs_5z", "mixed"): {
        "bc": (0.21, 0.04), "omar": (0.00, 0.00), "cfcql": (0.60, 0.14),
        "omiga": (0.20, 0.06), "inspo": (0.78, 0.09),
    },
    ("5m_vs_6m", "medium"): {
        "bc": (0.28, 0.37), "omar": (0.19, 0.06), "cfcql": (0.29, 0.05),
        "omiga": (0.25, 0.08), "inspo": (0.28, 0.06),
    },
    ("5m_vs_6m", "medium_replay"): {
        "bc": (0.18, 0.06), "omar": (0.03, 0.02), "cfcql": (0.22, 0.06),
        "omiga": (0.16, 0.05), "inspo": (0.24, 0.07),
    },
    ("5m_vs_6m", "expert"): {
        "bc": (0.82, 0.04), "omar": (0.33, 0.06), "cfcql": (0.84, 0.03),
        "omiga": (0.74, 0.05), "inspo": (0.79, 0.12),
    },
    ("5m_vs_6m", "mixed"): {
        "bc": (0.21, 0.12), "omar": (0.10, 0.10), "cfcql": (0.76, 0.07),
        "omiga": (0.38, 0.23), "inspo": (0.78, 0.06),
    },
    ("6h_vs_8z", "medium"): {
        "bc": (0.40, 0.03), "omar": (0.04, 0.03), "cfcql": (0.41, 0.04),
        "omiga": (0.34, 0.01), "inspo": (0.43, 0.06),
    },
    ("6h_vs_8z", "medium_replay"): {
        "bc": (0.11, 0.04), "omar": (0.00, 0.00), "cfcql": (0.21, 0.05),
        "omiga": (0.11, 0.04), "inspo": (0.23, 0.02),
    },
    ("6h_vs_8z", "expert"): {
        "bc": (0.60, 0.04), "omar": (0.01, 0.01), "cfcql": (0.70, 0.06),
        "omiga": (0.54, 0.04), "inspo": (0.74, 0.11),
    },
    ("6h_vs_8z", "mixed"): {
        "bc": (0.27, 0.06), "omar": (0.00, 0.00), "cfcql": (0.49, 0.08),
        "omiga": (0.36, 0.06), "inspo": (0.60, 0.12),
    },
}  # fmt: skip
# The last row of Table 4. (The mean of the sixteen values is that, but for rounding.)
MEAN_WIN_RATE = {"bc": 0.38, "omar": 0.21, "cfcql": 0.54, "omiga": 0.39, "inspo": 0.55}

# Table 5, win rates on 6h_vs_8z: the fixed temperature alpha, or "auto", that of Eq. 25. The tuned
# ones are those of Table 4, whose deviation is the one that is not printed here.
ALPHAS: dict[tuple[str, str], dict[str, Value]] = {
    ("6h_vs_8z", "expert"): {
        "0.1": (0.51, 0.17), "5": (0.54, 0.06), "10": (0.69, 0.05), "50": (0.62, 0.03),
        "auto": (0.74, math.nan),
    },
    ("6h_vs_8z", "mixed"): {
        "0.1": (0.17, 0.07), "5": (0.54, 0.06), "10": (0.53, 0.12), "50": (0.48, 0.07),
        "auto": (0.60, math.nan),
    },
}  # fmt: skip

# Table 6, win rates by the order of the agents; random is the row of Table 4.
ORDERS: dict[tuple[str, str], dict[str, Value]] = {
    ("5m_vs_6m", "medium"): {
        "random": (0.28, 0.06), "fixed": (0.29, 0.06), "semi_greedy": (0.28, 0.03),
    },
    ("5m_vs_6m", "medium_replay"): {
        "random": (0.24, 0.07), "fixed": (0.25, 0.10), "semi_greedy": (0.27, 0.04),
    },
    ("5m_vs_6m", "expert"): {
        "random": (0.79, 0.12), "fixed": (0.84, 0.05), "semi_greedy": (0.81, 0.05),
    },
    ("5m_vs_6m", "mixed"): {
        "random": (0.78, 0.06), "fixed": (0.78, 0.05), "semi_greedy": (0.78, 0.08),
    },
    ("6h_vs_8z", "medium"): {
        "random": (0.43, 0.06), "fixed": (0.39, 0.07), "semi_greedy": (0.42, 0.11),
    },
    ("6h_vs_8z", "medium_replay"): {
        "random": (0.23, 0.02), "fixed": (0.23, 0.04), "semi_greedy": (0.17, 0.08),
    },
    ("6h_vs_8z", "expert"): {
        "random": (0.74, 0.11), "fixed": (0.72, 0.07), "semi_greedy": (0.71, 0.09),
    },
    ("6h_vs_8z", "mixed"): {
        "random": (0.60, 0.12), "fixed": (0.62, 0.10), "semi_greedy": (0.65, 0.11),
    },
}  # fmt: skip

# Table 7, hours of training (an RTX 3090 or an A30 each, 1e7 steps; the data are not named).
HOURS = {
    "2s3z": {"cfcql": 1.0, "inspo": 1.75},
    "3s_vs_5z": {"cfcql": 1.0, "inspo": 1.2},
    "5m_vs_6m": {"cfcql": 0.5, "inspo": 1.25},
    "6h_vs_8z": {"cfcql": 0.75, "inspo": 2.25},
}

# Final joint policies as the figures print them. Rows are agent 2's actions, columns agent 1's;
# here, as everywhere in the program, [a_1][a_2].
FIGURE_3 = {  # XOR (b), by the method's key
    "omar": [[0.0, 0.0], [0.0, 1.0]],
    "omiga": [[0.36, 0.29], [0.20, 0.15]],
    "omiga_relaxed": [[0.0, 0.0], [0.0, 1.0]],
    "inspo": [[0.0, 0.0], [1.0, 0.0]],
}
FIGURE_5A = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]  # InSPO w/o entropy, M-NE imb.
FIGURE_5B = [[0.44, 0.21], [0.23, 0.12]]  # InSPO w/o SPO, XOR (b)
# The numbers of Figure 5b, all non-zero, sum to 1 and factorise: it is a joint policy of two
# independent agents, each at about two thirds for A, that is the behaviour policy of dataset (b).
