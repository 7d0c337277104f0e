"""One environment, one episode at a time."""

from functools import partial

import numpy as np
from components.episode_buffer import EpisodeBatch

from envs import REGISTRY as env_REGISTRY


class EpisodeRunner:
    def __init__(self, args, logger):
        self.args, self.logger = args, logger
        self.batch_size = args.batch_size_run
        assert self.batch_size == 1
        self.env = env_REGISTRY[args.env](**args.env_args)
        self.episode_limit = self.env.episode_limit
        self.t = self.t_env = 0
        self.train_returns, self.test_returns = [], []
        self.log_train_stats_t = -1000000

    def setup(self, scheme, groups, preprocess, mac):
        self.new_batch = partial(
            EpisodeBatch, scheme, groups, 1, self.episode_limit + 1, preprocess=preprocess
        )
        self.mac = mac

    def get_env_info(self):
        return self.env.get_env_info()

    def close_env(self):
        self.env.close()

    def _observe(self):
        return {
            "state": [self.env.get_state()],
            "avail_actions": [self.env.get_avail_actions()],
            "obs": [self.env.get_obs()],
        }

    def _act(self, test_mode):
        return self.mac.select_actions(
            self.batch, t_ep=self.t, t_env=self.t_env, test_mode=test_mode
        )

    def run(self, test_mode=False):
        self.batch = self.new_batch()
        self.env.reset()
        self.t, terminated, episode_return = 0, False, 0
        self.mac.init_hidden(batch_size=self.batch_size)
        while not terminated:
            self.batch.update(self._observe(), ts=self.t)
            actions = self._act(test_mode)
            _, reward, terminated, truncated, info = self.env.step(actions[0])
            terminated = terminated or truncated
            episode_return += reward
            ended = terminated != info.get("episode_limit", False)
            after = {"actions": actions, "terminated": [(ended,)], "reward": [(reward,)]}
            self.batch.update(after, ts=self.t)
            self.t += 1
        self.batch.update(self._observe(), ts=self.t)
        self.batch.update({"actions": self._act(test_mode)}, ts=self.t)

        returns = self.test_returns if test_mode else self.train_returns
        returns.append(episode_return)
        if not test_mode:
            self.t_env += self.t
        if test_mode and len(returns) == self.args.test_nepisode:
            self._log(returns, "test_")
        elif self.t_env - self.log_train_stats_t >= self.args.runner_log_interval:
            self._log(returns, "test_" if test_mode else "")
            self.log_train_stats_t = self.t_env
        return self.batch

    def _log(self, returns, prefix):
        self.logger.log_stat(f"{prefix}return_mean", np.mean(returns), self.t_env)
        self.logger.log_stat(f"{prefix}episodes", len(returns), self.t_env)
        returns.clear()
