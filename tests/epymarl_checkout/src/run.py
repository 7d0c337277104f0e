"""Builds in EPyMARL's order and trains in its loop."""

import os
from types import SimpleNamespace

import torch as th
from components.episode_buffer import ReplayBuffer

from controllers import REGISTRY as mac_REGISTRY
from learners import REGISTRY as le_REGISTRY
from runners import REGISTRY as r_REGISTRY
from utils.logging import Logger


class OneHot:
    """The only preprocessing there is."""

    def __init__(self, width):
        self.width = width

    def infer_output_info(self, vshape, dtype):
        return (self.width,), th.float32

    def transform(self, value):
        return th.zeros(*value.shape[:-1], self.width).scatter_(-1, value.long(), 1)


def run(config):
    args = SimpleNamespace(**config)
    args.device = "cuda" if args.use_cuda and th.cuda.is_available() else "cpu"
    args.unique_token = f"{args.name}_seed{args.seed}"
    logger = Logger()

    runner = r_REGISTRY[args.runner](args=args, logger=logger)
    info = runner.get_env_info()
    args.n_agents, args.n_actions = info["n_agents"], info["n_actions"]
    args.state_shape = info["state_shape"]
    scheme = {
        "state": {"vshape": info["state_shape"]},
        "obs": {"vshape": info["obs_shape"], "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": th.long},
        "avail_actions": {"vshape": (info["n_actions"],), "group": "agents", "dtype": th.int},
        "terminated": {"vshape": (1,), "dtype": th.uint8},
        "reward": {"vshape": (1,)},
    }
    groups = {"agents": args.n_agents}
    preprocess = {"actions": ("actions_onehot", [OneHot(args.n_actions)])}
    buffer = ReplayBuffer(
        scheme, groups, args.buffer_size, info["episode_limit"] + 1, preprocess=preprocess
    )
    mac = mac_REGISTRY[args.mac](buffer.scheme, groups, args)
    runner.setup(scheme=scheme, groups=groups, preprocess=preprocess, mac=mac)
    learner = le_REGISTRY[args.learner](mac, buffer.scheme, logger, args)
    if args.device == "cuda":
        learner.cuda()

    if args.checkpoint_path:
        steps = [int(name) for name in os.listdir(args.checkpoint_path)]
        step = min(steps, key=lambda s: abs(s - args.load_step)) if args.load_step else max(steps)
        learner.load_models(os.path.join(args.checkpoint_path, str(step)))
        runner.t_env = step
        if args.evaluate:
            for _ in range(args.test_nepisode):
                runner.run(test_mode=True)
            return logger

    episode, last_test, last_save = 0, -args.test_interval - 1, 0
    while runner.t_env <= args.t_max:
        buffer.insert_episode_batch(runner.run(test_mode=False))
        if buffer.can_sample(args.batch_size):
            sample = buffer.sample(args.batch_size)
            sample = sample[:, : sample.max_t_filled()]
            learner.train(sample, runner.t_env, episode)
        if runner.t_env - last_test >= args.test_interval:
            last_test = runner.t_env
            for _ in range(args.test_nepisode):
                runner.run(test_mode=True)
        if args.save_model and (
            runner.t_env - last_save >= args.save_model_interval or not last_save
        ):
            last_save = runner.t_env
            folder = os.path.join(
                args.local_results_path, "models", args.unique_token, str(last_save)
            )
            os.makedirs(folder, exist_ok=True)
            learner.save_models(folder)
        episode += args.batch_size_run
    runner.close_env()
    return logger
