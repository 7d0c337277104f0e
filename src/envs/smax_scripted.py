"""Scripted allies for SMAX: reference policies to compare learnt ones with."""

from __future__ import annotations

import numpy as np
from inspo.envs.smax import UnitLayout

# What the move actions 0 to 3 do: up, right, down, left.
DIRECTIONS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], dtype=np.float32)


class FocusFire:
    """Attack the weakest enemy in range; else walk to the nearest visible one; else across."""

    def __init__(self, layout: UnitLayout):
        self.layout = layout

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The joint actions `[N, n_agents]`, int64, for the arrays of `VectorEnv.observe`."""
        view = _View(self.layout, observation["obs"], observation["avail_actions"])
        return view.available_or_stop(self._attack_or_approach(view))

    def _attack_or_approach(self, view: _View) -> np.ndarray:
        move = _towards(np.where(view.sees_any[..., None], view.nearest_delta, view.across))
        return np.where(view.in_range.any(-1), view.weakest_in_range, move)


class Kiting(FocusFire):
    """Focus fire, but a unit that outranges its pursuer steps back while its weapon cools down."""

    # Tuned on 2s3z, 3s_vs_5z and 6h_vs_8z: more caution lets too many battles run out of time.
    flee_within = 0.7  # share of the own attack range
    flee_cooldown = 0.5  # in steps; with less to wait, the shot falls within this step
    wall_margin = 3.0  # in map units; touching the border kills

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        view = _View(self.layout, observation["obs"], observation["avail_actions"])
        flee = self._must_flee(view)
        actions = np.where(flee, self._retreat(view), self._attack_or_approach(view))
        return view.available_or_stop(actions)

    def _must_flee(self, view: _View) -> np.ndarray:
        """`[N, n]`: the weapon is not ready, and an enemy of shorter range has come close."""
        cooling = view.cooldown > self.flee_cooldown * self.layout.step_seconds
        outranges = view.attack_range > view.nearest_attack_range
        close = view.nearest_distance < self.flee_within * view.attack_range
        return view.sees_any & cooling & outranges & close

    def _retreat(self, view: _View) -> np.ndarray:
        """The move action `[N, n]` away from the visible enemies, near ones first, and the wall."""
        push = -view.enemy_delta / np.maximum(view.enemy_distance, 0.1)[..., None] ** 3
        push = np.where(view.visible[..., None], push, 0.0).sum(axis=-2)  # [N, n, 2]
        push /= np.maximum(np.linalg.norm(push, axis=-1, keepdims=True), 1e-6)
        score = push @ DIRECTIONS.T  # [N, n, 4]
        reach = view.position[..., None, :] + DIRECTIONS * view.step_length[..., None, None]
        size = np.array(self.layout.map_size)
        outside = ((reach < self.wall_margin) | (reach > size - self.wall_margin)).any(-1)
        return (score - 10.0 * outside).argmax(-1)


SCRIPTED: dict[str, type[FocusFire]] = {"focus_fire": FocusFire, "kiting": Kiting}


def _towards(delta: np.ndarray) -> np.ndarray:
    """The move action `[...]` closest to the direction `delta` `[..., 2]`."""
    return (delta @ DIRECTIONS.T).argmax(-1)


class _View:
    """What each agent sees, in map units. N environments, n agents, M enemies."""

    def __init__(self, layout: UnitLayout, obs: np.ndarray, avail: np.ndarray):
        n_others = layout.n_allies - 1 + layout.n_enemies
        n_features = len(layout.unit_features)
        units, own = np.split(obs, [n_others * n_features], axis=-1)
        units = units.reshape(*obs.shape[:-1], n_others, n_features)
        enemies = units[..., layout.n_allies - 1 :, :]  # [N, n, M, features]
        at = {name: i for i, name in enumerate(layout.unit_features)}
        mine = {name: i for i, name in enumerate(layout.own_features)}

        own_type = own[..., mine["unit_type_bit_0"] :].argmax(-1)  # [N, n]
        enemy_type = enemies[..., at["unit_type_bits_0"] :].argmax(-1)  # [N, n, M]
        size = np.array(layout.map_size, dtype=np.float32)
        self.position = own[..., [mine["position_x"], mine["position_y"]]] * size  # [N, n, 2]
        self.attack_range = layout.attack_range[own_type]
        self.cooldown = own[..., mine["weapon_cooldown"]] * layout.weapon_cooldown[own_type]
        self.step_length = layout.velocity[own_type] * layout.step_seconds
        # The enemies come from the right: what to walk to while none is in sight.
        self.across = size * np.array([0.75, 0.5], dtype=np.float32) - self.position

        self.visible = enemies[..., at["health"]] > 0  # [N, n, M]
        sight = layout.sight_range[own_type][..., None, None]
        self.enemy_delta = enemies[..., [at["position_x"], at["position_y"]]] * sight
        self.enemy_distance = np.linalg.norm(self.enemy_delta, axis=-1)  # [N, n, M]
        self.sees_any = self.visible.any(-1)  # [N, n]
        nearest = np.where(self.visible, self.enemy_distance, np.inf).argmin(-1)[..., None]
        self.nearest_delta = np.take_along_axis(self.enemy_delta, nearest[..., None], axis=-2)
        self.nearest_delta = self.nearest_delta[..., 0, :]  # [N, n, 2]
        self.nearest_distance = np.linalg.norm(self.nearest_delta, axis=-1)
        enemy_range = layout.attack_range[enemy_type]
        self.nearest_attack_range = np.take_along_axis(enemy_range, nearest, axis=-1)[..., 0]

        self.in_range = avail[..., layout.n_move_actions :] > 0  # [N, n, M]
        health = enemies[..., at["health"]] * layout.max_health[enemy_type]
        weakest = np.where(self.in_range, health, np.inf).argmin(-1)
        self.weakest_in_range = weakest + layout.n_move_actions  # [N, n]
        self._avail, self._stop = avail, layout.n_move_actions - 1

    def available_or_stop(self, actions: np.ndarray) -> np.ndarray:
        """`actions` with those of the dead replaced by the stop action."""
        ok = np.take_along_axis(self._avail, actions[..., None], axis=-1)[..., 0] > 0
        return np.where(ok, actions, self._stop).astype(np.int64)
