"""Saved states that are put back: what is built otherwise is refused, and named."""

import copy

import pytest
import torch as th
from cases import build, random_batch

from inspo.utils.checkpoints import put_back
from inspo.utils.errors import CheckpointError


@pytest.fixture(scope="module")
def trained():
    """The state of a learner after an update."""
    learner, _, _ = build("bc")
    learner.train(random_batch([4, 1]), 0, 0)
    return learner.state_dict()


def moments(state):
    return state["optimisers"]["policy"]["state"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.update(optimisers={}), "lacks 'policy'"),
        (lambda s: s.pop("updates"), "lacks 'updates'"),
        (lambda s: s.update(networks=[]), "list indices"),
        (lambda s: s["networks"]["agent"].update(x=1), 'Unexpected key(s) in state_dict: "x"'),
        (lambda s: s["networks"]["agent"].update({"fc1.bias": th.ones(2)}), "size mismatch"),
        (lambda s: s["optimisers"].update(policy=3), "int"),
        (lambda s: moments(s)[0].pop("exp_avg"), "expected exp_avg, exp_avg_sq, step"),
        (lambda s: moments(s)[0].update(exp_avg=th.ones(2)), "exp_avg has shape [2]"),
    ],
)
def test_what_is_built_otherwise_is_named(tmp_path, trained, change, part):
    state = copy.deepcopy(trained)
    change(state)
    learner, _, _ = build("bc")
    with pytest.raises(CheckpointError) as caught:
        put_back(learner, state, tmp_path / "learner.th")
    message = str(caught.value)
    assert part in message and message.startswith(str(tmp_path / "learner.th"))


@pytest.mark.parametrize("state", [[1], None, 3, "x", {}])
def test_weights_that_are_no_dictionary(tmp_path, state):
    learner, _, _ = build("bc")
    with pytest.raises(CheckpointError, match=r"agent\.th"):
        put_back(learner.mac.agent, state, tmp_path / "agent.th")
