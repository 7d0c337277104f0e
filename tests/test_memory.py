"""Devices that are missing, broken or full: one clear line, and what was learnt is saved."""

import warnings
from types import SimpleNamespace

import pytest
import torch as th
from cases import build, random_batch

from inspo.utils import devices
from inspo.utils.checkpoints import load_checkpoint
from inspo.utils.errors import ConfigError, UserError
from inspo.utils.interrupts import out_of_memory
from inspo.utils.memory import check_memory
from inspo.utils.run_state import Progress, Saver
from inspo.utils.settings import Settings

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 7 GiB"


def old_driver():
    warnings.warn("The NVIDIA driver on your system is too old (found 11040).\nMore", stacklevel=1)
    return False


def broken(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available\nMore")


def test_the_device_is_chosen_and_the_reason_told(monkeypatch, tmp_path):
    choose = devices.choose_device
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    assert choose(True) == choose(False) == ("cpu", "")
    monkeypatch.setattr(devices, "DRIVER", tmp_path)
    monkeypatch.setattr(th.version, "cuda", None)
    assert "is built without CUDA" in choose(True)[1] and choose(False) == ("cpu", "")
    monkeypatch.setattr(th.version, "cuda", "13.0")
    monkeypatch.setattr(th.cuda, "is_available", old_driver)
    device, note = choose(True)
    assert device == "cpu" and "driver on your system is too old" in note and "\n" not in note
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th, "zeros", broken)
    with pytest.raises(ConfigError, match=r"^the GPU cannot be used: CUDA error: no kernel.*$"):
        choose(True)


def test_what_a_gpu_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (1 << 29, 1 << 33))
    check_memory(1 << 29, "cuda", "rows", "")
    with pytest.raises(ConfigError, match=r"rows need 1\.0 GiB of memory, and 0\.5 GiB are free"):
        check_memory(1 << 30, "cuda", "rows", "Take fewer.")


@pytest.mark.parametrize(
    "error",
    [
        th.OutOfMemoryError(FULL),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_run_that_finds_no_memory_is_saved(error, tmp_path):
    learner, _, args = build("bc")
    learner.train(random_batch([3, 2], args), 0, 0)
    keys = {"name": "bc", "env": "matrix", "map_name": "x", "resume": "", "checkpoint_path": ""}
    keys |= {"local_results_path": str(tmp_path), "keep_checkpoints": 2, "save_model": True}
    settings = Settings(keys).with_facts(device="cpu", unique_token="run")
    progress = Progress(t_env=70)
    logger, agent = SimpleNamespace(state_dict=dict), learner.mac.agent
    saver = Saver(settings, logger, agent, learner, progress, None, {})
    with pytest.raises(UserError) as caught, saver.explaining_failures():
        raise error
    message = str(caught.value)
    assert message.startswith("out of memory (") and "\n" not in message
    assert f"Saved step 70. Make room on cpu, then go on with resume={saver.folder}" in message
    saved = load_checkpoint(saver.folder)
    assert saved.step == 70 and saved.entry("learner.th")["updates"] == 1


def test_other_errors_stay_what_they_are():
    assert out_of_memory(RuntimeError("shapes differ")) == ""
    with pytest.raises(RuntimeError, match="shapes differ"):
        saver = Saver.__new__(Saver)
        with saver.explaining_failures():
            raise RuntimeError("shapes differ")
