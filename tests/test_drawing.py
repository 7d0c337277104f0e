"""Pictures of play: what stands where in a frame, the GIF itself, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cases import make_args
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.envs import drawing
from inspo.envs.bridge import encode
from inspo.envs.bridge_boards import BOARD_OF, LEFT
from inspo.envs.matrix import MatrixVectorEnv
from inspo.envs.overcooked import ONION, PLATE, SOUP, Kitchen
from inspo.runners import REGISTRY
from inspo.utils.errors import ConfigError

OURS, THEIRS = drawing.TEAMS


def drawn(draw, env, episode, t):
    """The axes of one frame."""
    ax = Figure().subplots()
    draw(ax, env, episode, t)
    return ax


def discs(ax, colour):
    """(x, y, opacity) of the round markers in a colour."""
    found = []
    for line in ax.lines:
        if line.get_marker() == "o" and to_hex(line.get_color()) == colour:
            found.append((float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_alpha()))
    return found


@pytest.mark.parametrize("cells", [[[1, 2], [1, 3]], [[0, 1], [1, 3], [2, 1]]])
def test_bridge_shows_the_agents_the_goals_and_the_moves(cells):
    n = len(cells)
    cells = np.array([cells, cells])
    cells[1, 0] += [0, -1]
    played = np.zeros((2, n, 1), dtype=int)
    played[0, 0] = LEFT
    episode = {"state": encode(cells), "actions": played}
    for t in (0, 1):
        ax = drawn(drawing.draw_bridge, None, episode, t)
        found = [patch for patch in ax.patches if isinstance(patch, Circle)]
        assert [patch.center for patch in found] == [(x + 0.5, y + 0.5) for y, x in cells[t]]
        assert [to_hex(patch.get_facecolor()) for patch in found] == list(drawing.AGENTS[:n])
        squares = [patch.get_xy()[:4].mean(0).tolist() for patch in ax.patches
                   if to_hex(patch.get_edgecolor()) in drawing.AGENTS]  # fmt: skip
        assert squares == [[x + 0.5, y + 0.5] for y, x in BOARD_OF[n].goals]
        arrows = [text for text in ax.texts if not text.get_text()]
        assert len(arrows) == 1 - t  # the others stay, and in the last board nothing is played
        assert t or (arrows[0].xy[0] < cells[0, 0, 1] and arrows[0].xy[1] == cells[0, 0, 0] + 0.5)


def test_a_kitchen_shows_the_cooks_what_they_hold_and_what_cooks():
    kitchen = Kitchen("coord_ring")
    state = np.zeros(kitchen.width)
    for i, (cell, facing, item) in enumerate([(1, 3, PLATE), (7, 0, None)]):
        own = state[i * kitchen.agent_width :][: kitchen.agent_width]
        own[cell] = own[len(kitchen.floor) + facing] = 1
        if item:
            own[len(kitchen.floor) + 3 + item] = 1
    pots = state[2 * kitchen.agent_width :]
    pots[:6] = [1, 0.35, 0, 2 / 3, 0, 0]  # one cooks, seven steps to go; one has two onions
    pots[6 + 3 * 3 + SOUP - 1] = 1  # on the fourth counter
    env = SimpleNamespace(kitchen=kitchen, map_name="coord_ring")
    ax = drawn(drawing.draw_kitchen, env, {"state": np.stack([state])}, 0)
    circles = [(p.center, to_hex(p.get_facecolor())) for p in ax.patches if isinstance(p, Circle)]
    for i, cell in enumerate((1, 7)):
        row, column = kitchen.floor[cell]
        assert ((column + 0.5, row + 0.5), drawing.AGENTS[i]) in circles
    colours = [colour for _, colour in circles]
    food = {item: to_hex(colour) for item, colour in drawing.FOOD.items()}
    assert colours.count(food[PLATE]) == 1 and colours.count(food[ONION]) == 3 + 2
    row, column = kitchen.counters[3]
    assert ((column + 0.5, row + 0.5), food[SOUP]) in circles
    assert {"7", "onions", "plates", "out", "1", "2"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("payoff", "actions", "cells"),
    [
        ([[0, 1], [1, -2]], [1, 0], ["0", "1", "1", "-2"]),
        ([3, 4], [1], ["3", "4"]),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [0, 1, 1], ["2", "4", "6", "8"]),
    ],
)
def test_a_matrix_game_shows_its_payoffs_and_the_cell_that_was_chosen(payoff, actions, cells):
    env = MatrixVectorEnv("custom", payoff=payoff)
    episode = {"actions": np.array([actions, [0] * len(actions)])[..., None]}
    first, last = (drawn(drawing.draw_matrix, env, episode, t) for t in (0, 1))
    assert [text.get_text() for text in last.texts] == cells
    (frame,) = [patch for patch in last.patches if patch.get_linewidth() > 2]
    row, column = actions[:2] if len(actions) > 1 else (0, *actions)
    assert frame.get_xy()[:4].mean(0).tolist() == [column + 0.5, row + 0.5]
    assert all(patch.get_linewidth() <= 2 for patch in first.patches)


def battle():
    """Two against two, three steps: ally 1 falls in step 1, enemy 0 is out of sight at the end."""
    features = ["health", "position_x", "position_y", "weapon_cooldown", "unit_type_bit_0"]
    seen = ["health", "position_x", "position_y", "last_targeted"]
    smax = SimpleNamespace(
        num_allies=2, num_enemies=2, num_movement_actions=5, num_enemy_actions=7, map_width=32,
        map_height=32, own_features=features, unit_features=seen, unit_type_radiuses=[0.5],
        unit_type_shorthands=["m"], unit_type_names=["marine"],
    )  # fmt: skip
    units = np.zeros((3, 4, 5))
    units[..., 0], units[..., 4] = 1.0, 1.0
    units[..., 1], units[..., 2] = [[0.25, 0.25, 0.5, 0.5]], [[0.5, 0.25, 0.5, 0.25]]
    units[1:, 1] = 0  # the features of the dead
    obs = np.zeros((3, 2, 3, 4))
    obs[1, 0, 2, 3] = 5 / 6  # enemy 1 took action 5: attack the last ally
    obs[2, 0, 1:, 3] = 6 / 6  # action 6: the one before
    episode = {
        "state": np.concatenate([units.reshape(3, -1), np.zeros((3, 8))], axis=1),
        "obs": obs.reshape(3, 2, -1),
        "actions": np.array([[6, 1], [5, 4], [0, 0]])[..., None],
    }
    return SimpleNamespace(program=SimpleNamespace(smax=smax), n_agents=2), episode


def test_smax_knows_who_shoots_at_whom():
    env, episode = battle()
    shots = [drawing._shots(env.program.smax, episode, t) for t in range(3)]
    assert shots == [{0: 3, 3: 1}, {0: 2, 2: 0, 3: 0}, {}]


def test_smax_shows_units_where_they_stand_and_the_fallen_faded():
    env, episode = battle()
    before, after = (drawn(drawing.draw_smax, env, episode, t) for t in (0, 2))
    assert discs(before, OURS)[:2] == [(8, 16, 1.0), (8, 8, 1.0)]
    assert discs(before, THEIRS)[:2] == [(16, 16, 1.0), (16, 8, 1.0)]
    assert discs(after, OURS) == [(8, 16, 1.0), (8, 8, pytest.approx(0.2))]
    assert before.get_xlabel().startswith("2 allies (blue), 2 enemies (red)")
    assert after.get_xlabel().startswith("1 allies (blue), 2 enemies (red)")
    (low, high), (bottom, top) = after.get_xlim(), after.get_ylim()
    assert low < 8 and high > 16 and bottom < 8 and top > 16  # everybody is in the picture


def test_what_cannot_be_drawn_is_one_clear_error():
    args = {"record": "play.gif", "env": "smax"}
    for change in ({}, {"record": None}):
        drawing.check_record(SimpleNamespace(**args | change))
    for change, message in (
        ({"env": "sc2"}, "'sc2' cannot be drawn.*save_replay=True"),
        ({"record": "play.mp4"}, "expected the name of a .gif file, found play.mp4"),
        ({"record": "nowhere/play.gif"}, "no folder nowhere"),
    ):
        with pytest.raises(ConfigError, match=f"^record: .*{message}"):
            drawing.check_record(SimpleNamespace(**args | change))


def test_a_runner_draws_an_episode_of_its_policy(tmp_path):
    env_args = {"map_name": "bridge", "episode_limit": 4}
    args = make_args("mappo", "bridge", agent="mlp", batch_size_run=2, env_args=env_args)
    runner = REGISTRY["vector"](args, None)
    vars(args).update(runner.get_env_info())
    scheme = build_scheme(runner.get_env_info())
    runner.setup(scheme, {}, None, mac_REGISTRY[args.mac](scheme, {}, args))
    told = runner.record(str(tmp_path / "play.gif"))
    assert told.startswith(f"{tmp_path}/play.gif: 4 steps, return ")
    assert runner.t_env == 0 and len(runner.train_stats) == 0
    with Image.open(tmp_path / "play.gif") as image:
        assert image.format == "GIF" and image.n_frames == 5 and image.info["loop"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["play.gif"]
