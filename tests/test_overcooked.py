"""Overcooked against its rules written out in numpy; layouts, scripted teams, conventions."""

import numpy as np
import pytest

from inspo.envs import conventions
from inspo.envs.overcooked import (
    COOKING_STEPS,
    DIRECTIONS,
    INTERACT,
    LAYOUTS,
    Kitchen,
    OvercookedVectorEnv,
)
from inspo.offline import game_data, overcooked_data
from inspo.utils.errors import ConfigError

N_ENVS, LIMIT, SHAPING = 16, 100, 0.5
NAMES = {"nothing": 0, "onion": 1, "plate": 2, "soup": 3}


@pytest.fixture(scope="module")
def env():
    return OvercookedVectorEnv("coord_ring", N_ENVS, episode_limit=LIMIT, shaping=SHAPING)


class ByHand:
    """One kitchen as a person would describe it; `step` returns (soups delivered, shaped reward).

    JaxMARL lets agents interact from where they stood and looked before they move.
    """

    def __init__(self, kitchen, seen):
        self.kitchen = kitchen
        self.at = [tuple(kitchen.floor[cell]) for cell in seen["cell"]]
        self.facing, self.held = list(seen["facing"]), list(seen["held"])
        self.pots = {tuple(cell): [0, None] for cell in kitchen.pots}  # onions, steps left
        self.lying = {tuple(cell): 0 for cell in kitchen.counters}

    def step(self, actions):
        before = [(self.at[i], self.facing[i]) for i in range(2)]
        goals = list(self.at)
        for i, action in enumerate(actions):
            if action < 4:
                self.facing[i] = action
                to = tuple(np.add(self.at[i], DIRECTIONS[action]))
                goals[i] = to if self.kitchen.grid[to] == " " else self.at[i]
        swapped = goals[0] == self.at[1] and goals[1] == self.at[0]
        if goals[0] != goals[1] and not swapped:
            self.at = goals
        soups = shaped = 0
        for i, action in enumerate(actions):
            if action == INTERACT:
                delivered, extra = self.interact(
                    i, tuple(np.add(before[i][0], DIRECTIONS[before[i][1]]))
                )
                soups, shaped = soups + delivered, shaped + extra
        for pot in self.pots.values():
            if pot[0] == 3:
                pot[1] = COOKING_STEPS - 1 if pot[1] is None else max(pot[1] - 1, 0)
        return soups, shaped

    def interact(self, i, front):
        thing, held = self.kitchen.grid[front], self.held[i]
        if thing == "O" and held == 0:
            self.held[i] = NAMES["onion"]
        elif thing == "B" and held == 0:
            cooking = sum(onions > 0 for onions, _ in self.pots.values())
            wanted = self.held.count(NAMES["plate"]) < cooking
            self.held[i] = NAMES["plate"]
            return 0, 3 * (wanted and NAMES["plate"] not in self.lying.values())
        elif thing == "X" and held == NAMES["soup"]:
            self.held[i] = 0
            return 1, 0
        elif thing == "P":
            pot = self.pots[front]
            if held == NAMES["onion"] and pot[0] < 3:
                self.held[i], pot[0] = 0, pot[0] + 1
                return 0, 3
            if held == NAMES["plate"] and pot == [3, 0]:
                self.held[i], self.pots[front] = NAMES["soup"], [0, None]
                return 0, 5
        elif thing == "W" and 0 in (held, self.lying[front]):
            self.held[i], self.lying[front] = self.lying[front], held
        return 0, 0

    def matches(self, seen):
        pots = [[onions, left or 0, left == 0] for onions, left in self.pots.values()]
        return (
            [tuple(self.kitchen.floor[cell]) for cell in seen["cell"]] == self.at
            and seen["facing"].tolist() == self.facing
            and seen["held"].tolist() == self.held
            and seen["pots"].tolist() == pots
            and seen["lying"].tolist() == list(self.lying.values())
        )


def test_steps_and_rewards_are_those_of_the_rules(env):
    rng = np.random.default_rng(0)
    env.seed(1)
    env.reset()
    kitchen, soups_in_all, counters_used = env.kitchen, 0, 0
    seen = kitchen.read(env.observe()["state"])
    byhand = [ByHand(kitchen, {k: v[e] for k, v in seen.items()}) for e in range(N_ENVS)]
    team = np.repeat(rng.integers(4, size=(N_ENVS, 1)), 2, axis=1)
    for t in range(LIMIT):
        actions = overcooked_data.act("coord_ring", team, env.observe()["state"], rng)
        wild = (
            rng.random(actions.shape) < np.linspace(0, 1, N_ENVS)[:, None]
        )  # some teams, some not
        actions = np.where(
            wild, rng.choice(6, p=[*[0.15] * 4, 0, 0.4], size=actions.shape), actions
        )
        out = env.step(actions)
        seen = kitchen.read(env.observe()["state"])
        for e in range(N_ENVS):
            soups, shaped = byhand[e].step(actions[e].tolist())
            assert byhand[e].matches({k: v[e] for k, v in seen.items()})
            assert out.reward[e] == pytest.approx(20 * soups + SHAPING * shaped)
            soups_in_all += soups
        counters_used += (seen["lying"] > 0).any()
        assert not out.terminated.any()
        assert out.truncated.tolist() == [t + 1 == LIMIT] * N_ENVS
    assert soups_in_all > 5 and counters_used > 10  # or little was looked at


def test_both_agents_see_themselves_first_and_the_first_ones_view_is_the_state(env):
    env.reset()
    seen, width = env.observe(), env.kitchen.agent_width
    first, second = seen["obs"][:, 0], seen["obs"][:, 1]
    assert np.array_equal(first, seen["state"])
    assert np.array_equal(first[:, :width], second[:, width : 2 * width])
    assert np.array_equal(second[:, :width], first[:, width : 2 * width])
    assert np.array_equal(first[:, 2 * width :], second[:, 2 * width :])
    assert (seen["avail_actions"] == 1).all()


@pytest.mark.parametrize("map_name", LAYOUTS)
def test_the_layouts_are_jaxmarls(map_name, env):
    from jaxmarl.environments.overcooked.layouts import overcooked_layouts

    kitchen, layout = Kitchen(map_name), overcooked_layouts[map_name]
    names = {"P": "pot", "O": "onion_pile", "B": "plate_pile", "X": "goal"}
    for letter, name in names.items():
        found = np.flatnonzero(kitchen.grid == letter).tolist()
        assert found == sorted(layout[f"{name}_idx"].tolist())
    walls = {*layout["wall_idx"].tolist()} | {*layout["pot_idx"].tolist()}
    assert {*np.flatnonzero(kitchen.grid != " ").tolist()} == walls


@pytest.mark.parametrize("map_name", overcooked_data.TEAMS)
def test_the_floor_of_the_teams_layouts_is_a_ring(map_name):
    ring = Kitchen(map_name).ring()
    assert (np.abs(ring - np.roll(ring, 1, axis=0)).sum(1) == 1).all()


def play(env, team, seed=0):
    """Returns, and the conventions that the episodes are said to have."""
    rng, total, states = np.random.default_rng(seed), 0, []
    env.seed(seed)
    env.reset()
    members = np.tile(team, (env.n_envs, 1))
    for _ in range(LIMIT):
        states.append(env.observe()["state"])
        total = total + env.step(overcooked_data.act(env.map_name, members, states[-1], rng)).reward
    states.append(env.observe()["state"])
    last = np.full(env.n_envs, LIMIT)
    return total, conventions.labels("overcooked", env.map_name, np.stack(states, 1), last)


def test_teams_serve_soups_and_members_of_two_teams_do_not(env):
    wanted = {0: (0, 0), 1: (1, 1), 2: (2, 3), 3: (3, 2)}
    for team, names in wanted.items():
        returns, labels = play(env, (team, team))
        assert returns.mean() > 30
        assert (labels == names).all(1).mean() > 0.9
    for pair in ((0, 1), (2, 0), (3, 2)):
        assert play(env, pair)[0].mean() < 10


def test_what_there_is_not_is_one_error():
    with pytest.raises(ConfigError, match=r"'coord_rings'. Did you mean 'coord_ring'"):
        Kitchen("coord_rings")
    with pytest.raises(ConfigError, match=r"no data can be made: .* coord_ring, counter_circuit"):
        game_data.make_dataset("overcooked", "cramped_room", "conventions")
