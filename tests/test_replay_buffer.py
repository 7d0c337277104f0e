"""The replay buffer of the online learners."""

import torch as th
from cases import make_args, random_batch, scheme_of

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.replay_buffer import ReplayBuffer

KEYS = ("state", "obs", "actions", "avail_actions", "reward", "terminated", "filled")


def episodes(lengths, seed):
    """Whole rows of the limit (9 transitions), zeros where not filled, as a runner gives them."""
    batch = random_batch(lengths, seed=seed, pad=10 - max(lengths) - 1)
    filled = batch["filled"]
    data = {}
    for key in KEYS:
        mask = filled.view(*filled.shape, *[1] * (batch[key].dim() - 3))
        data[key] = batch[key] * mask.to(batch[key].dtype)
    return EpisodeBatch(data)


def make_buffer(size=5, seed=0):
    return ReplayBuffer(scheme_of(make_args("qmix", "matrix")), 3, size, 10, seed)


def signature(batch, e):
    return tuple(batch["state"][e, 0].tolist())


def test_the_latest_episodes_remain():
    buffer = make_buffer(5)
    first, second = episodes([3, 9, 2], 1), episodes([4, 1, 5], 2)
    assert not buffer.can_sample(1)
    buffer.insert_episode_batch(first)
    assert buffer.can_sample(3)
    assert not buffer.can_sample(4)
    buffer.insert_episode_batch(second)
    assert buffer.episodes_in_buffer == 5
    drawn = buffer.sample(5)
    held = {signature(drawn, e) for e in range(5)}
    wanted = {signature(first, e) for e in (1, 2)} | {signature(second, e) for e in range(3)}
    assert held == wanted


def test_samples_are_trimmed_whole_and_without_replacement():
    buffer = make_buffer(5)
    source = episodes([3, 6, 2, 4, 1], 1)
    buffer.insert_episode_batch(source)
    place = {signature(source, e): e for e in range(5)}
    seen = set()
    for _ in range(30):
        batch = buffer.sample(3)
        chosen = [place[signature(batch, e)] for e in range(3)]
        assert len(set(chosen)) == 3
        seen.update(chosen)
        assert batch.max_seq_length == max([3, 6, 2, 4, 1][e] for e in chosen) + 1
        for key in KEYS:
            assert th.equal(batch[key], source[key][chosen, : batch.max_seq_length])
    assert seen == set(range(5))


def test_a_restored_buffer_goes_on_the_same_way():
    buffer, twin = make_buffer(4, seed=5), make_buffer(4, seed=99)
    twin.insert_episode_batch(episodes([9, 9], 7))  # to be forgotten
    buffer.insert_episode_batch(episodes([3, 6, 2], 1))
    buffer.sample(2)
    twin.load_state_dict(buffer.state_dict())
    for part in (buffer, twin):
        part.insert_episode_batch(episodes([4, 2], 3))  # wraps around
    for _ in range(5):
        a, b = buffer.sample(3), twin.sample(3)
        assert all(th.equal(a[key], b[key]) for key in KEYS)


def test_an_empty_buffer_can_be_saved():
    buffer = make_buffer()
    twin = make_buffer()
    twin.load_state_dict(buffer.state_dict())
    assert not twin.can_sample(1)
