"""Statistics: from tensors to floats, to the sinks, into a checkpoint and out of it."""

import io
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inspo.utils import logging as run_logging
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError
from inspo.utils.logging import Logger, add_file, get_console_logger, to_floats
from inspo.utils.phases import progress_bar
from inspo.utils.seeding import seed_everything, spawn_seeds
from inspo.utils.settings import Settings


class FakeSacred:
    def __init__(self):
        self.scalars, self.info = [], {}

    def log_scalar(self, key, value, t):
        self.scalars.append((key, value, t))


@pytest.fixture
def logger():
    return Logger(get_console_logger("test_logging"))


def test_every_kind_of_number_becomes_a_float():
    pairs = [
        (0.5, 0.5), (torch.tensor(1.5, requires_grad=True), 1.5), (True, 1.0),
        (torch.tensor([2**40]), float(2**40)), (np.float32(0.25), 0.25), (np.array([3]), 3.0),
        (torch.tensor(False), 0.0),
    ]  # fmt: skip
    floats = to_floats({str(k): value for k, (value, _) in enumerate(pairs)})
    assert list(floats.items()) == [(str(k), expected) for k, (_, expected) in enumerate(pairs)]
    assert all(type(value) is float for value in floats.values())


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(0), [1, 2]])
def test_more_than_one_number_is_an_error(value):
    with pytest.raises(ValueError, match="'loss'"):
        to_floats({"loss": value})


def test_all_tensors_cross_in_one_copy(logger, monkeypatch):
    copies = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda self: copies.append(self.shape) or tolist(self)
    )
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a copy of its own"))
    logger.log_stats({f"x{i}": torch.tensor(float(i)) for i in range(20)}, 5)
    assert copies == [(20,)]
    assert logger.stats["x7"] == [(5, 7.0)]


def test_tensorboard_files_are_written(logger, tmp_path):
    logger.setup_tb(tmp_path / "tb")
    logger.log_stat("loss", torch.tensor(0.5), 10)
    logger.log_stat("loss", 0.25, np.int64(20))
    (file,) = (tmp_path / "tb").iterdir()
    assert b"loss" in file.read_bytes()


def test_weights_and_biases_get_every_scalar_with_its_step(logger, tmp_path, monkeypatch):
    asked, logged = {}, []
    run = SimpleNamespace(log=logged.append)
    wandb = SimpleNamespace(init=lambda **options: asked.update(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    words = ["with", "wandb_team=lab", "use_wandb=True", f"local_results_path={tmp_path / 'new'}"]
    config = load_config(["--config=bc", "--env-config=matrix_offline", *words])
    settings = Settings(config.values).with_facts(unique_token="run_1")
    logger.setup_wandb(settings)
    logger.log_stats({"loss": torch.tensor(0.5), "episodes": 3}, 10)
    assert logged == [{"loss": 0.5, "t_env": 10}, {"episodes": 3.0, "t_env": 10}]
    assert (asked["project"], asked["entity"], asked["mode"]) == ("inspo", "lab", "offline")
    assert asked["config"]["wandb_team"] == "lab" and asked["group"] == "bc_xor_a"
    assert Path(asked["dir"]) == tmp_path / "new"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"use_wandb=True.*pip install wandb"):
        logger.setup_wandb(settings)


def test_the_history_goes_through_a_checkpoint_and_to_new_sinks(logger, tmp_path):
    logger.log_stats({"a": 1, "b": 2.0}, 1)
    logger.log_stat("a", 3, 2)
    torch.save(logger.state_dict(), tmp_path / "state")
    resumed = Logger(logger.console_logger)
    run = FakeSacred()
    resumed.setup_sacred(run)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert resumed.stats == logger.stats
    assert run.scalars == [("a", 1.0, 1), ("b", 2.0, 1), ("a", 3.0, 2)]
    resumed.log_stat("a", 4, 3)
    assert resumed.stats["a"][-1] == (3, 4.0)


def test_recent_statistics_are_printed_once(logger, capsys):
    logger.log_stats({"loss": 0.125, "test_return_mean": 12.5}, 1500)
    logger.print_recent_stats()
    logger.print_recent_stats()
    text = capsys.readouterr().err
    assert text.count("Recent statistics, t_env 1,500") == 1
    assert "loss:" in text and "0.125" in text
    logger.log_stat("loss", 0.5, 1600)
    logger.print_recent_stats()
    text = capsys.readouterr().err
    assert "0.5" in text and "test_return_mean" not in text


def test_lines_stand_above_the_bar_and_alone_in_the_file(tmp_path, monkeypatch):
    console = get_console_logger("test_bar")
    handler = add_file(console, tmp_path / "cout.txt")
    monkeypatch.setattr(run_logging.sys, "stderr", io.StringIO())
    with progress_bar(10, desc="training") as bar:
        bar.update(5)
        console.info("half of it")
    handler.close()
    assert "half of it\n" in run_logging.sys.stderr.getvalue()
    text = (tmp_path / "cout.txt").read_text()
    assert text.count("\n") == 1
    assert "half of it" in text


def test_one_seed_fixes_the_global_generators_and_begins_independent_streams():
    def draw(seed):
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(5) == draw(5) != draw(6)
    seeds = spawn_seeds(1, "environment", 500)
    assert len(set(seeds)) == 500 and all(0 <= seed < 2**31 for seed in seeds)
    assert spawn_seeds(1, "environment", 3) == seeds[:3]
    assert not set(seeds) & set(spawn_seeds(1, "sampling", 500))
    assert not set(seeds) & set(spawn_seeds(2, "environment", 500))
