"""How far targets carry values: against a chain that is walked step by step."""

import pytest

from inspo.learners.targets import TargetSchedule, carried_share


def walked(moves: int, tau: float, td_lambda: float, length: int, gamma: float) -> float:
    """The same by loops: h steps are left, each pays 1."""

    def returns(target):
        found = [0.0]
        for h in range(1, length + 1):
            after = (1 - td_lambda) * target[h - 1] + td_lambda * found[h - 1]
            found.append(1 + gamma * after)
        return found

    target = [0.0] * (length + 1)
    for _ in range(moves):
        target = [(1 - tau) * old + tau * new for old, new in zip(target, returns(target))]
    true = [sum(gamma**k for k in range(h)) for h in range(1, length + 1)]
    return sum(returns(target)) / sum(true)


@pytest.mark.parametrize(
    ("moves", "tau", "td_lambda", "length"),
    [(0, 1.0, 0.0, 1), (3, 1.0, 0.0, 7), (5, 1.0, 0.6, 30), (40, 0.05, 0.0, 12), (9, 0.3, 0.9, 20)],
)
def test_the_share_is_that_of_a_chain(moves, tau, td_lambda, length):
    found = carried_share(TargetSchedule(moves, tau, td_lambda), length, 0.99)
    assert found == pytest.approx(walked(moves, tau, td_lambda, length, 0.99), rel=1e-9)
    assert length > moves or found == pytest.approx(1.0) or tau < 1


def test_monte_carlo_returns_need_no_targets():
    assert carried_share(TargetSchedule(0, 1.0, 1.0), 50, 0.99) == pytest.approx(1.0)
