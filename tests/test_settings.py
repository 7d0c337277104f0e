"""The configuration of a run: attributes and mapping, read-only, with facts beside it."""

import copy
import pickle

import pytest

from inspo.utils.errors import UserError
from inspo.utils.settings import Settings

VALUES = {"lr": 0.1, "env_args": {"map_name": "2s3z", "seed": None}, "dataset": {"path": None}}


def test_keys_are_attributes_and_items_in_groups_too():
    settings = Settings(VALUES)
    assert settings.lr == settings["lr"] == 0.1
    assert settings.env_args.map_name == settings["env_args"]["map_name"] == "2s3z"
    assert dict(**settings.env_args) == VALUES["env_args"]
    assert "lr" in settings and "gamma" not in settings and len(settings) == 3
    assert settings.as_dict() == VALUES and type(settings.as_dict()["env_args"]) is dict


def test_facts_stand_beside_the_keys_and_are_not_recorded():
    settings = Settings(VALUES)
    run = settings.with_facts(n_agents=3).with_facts(device="cpu")
    assert (run.n_agents, run.device, run.lr) == (3, "cpu", 0.1)
    assert run.as_dict() == VALUES and "n_agents" not in run
    assert not hasattr(settings, "n_agents")


def test_nothing_can_be_changed():
    settings = Settings(VALUES)
    with pytest.raises(AttributeError, match="read-only: lr=1"):
        settings.lr = 1
    with pytest.raises(TypeError):
        settings["lr"] = 1
    with pytest.raises(TypeError):
        settings.env_args["map_name"] = "3m"
    settings.as_dict()["env_args"]["map_name"] = "3m"
    assert settings.env_args.map_name == "2s3z"


def test_a_key_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="no key 'gamma'") as caught:
        Settings(VALUES).gamma  # noqa: B018
    assert isinstance(caught.value, UserError)  # an algorithm's file that lacks a key


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_it_can_be_copied(clone):
    settings = clone(Settings(VALUES).with_facts(n_agents=2))
    assert settings.n_agents == 2 and settings.env_args.map_name == "2s3z"
