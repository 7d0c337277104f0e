"""Schedules as functions of the step or of the share of training done."""


def linear(start: float, finish: float, duration: int, t: int) -> float:
    """From `start` at t = 0 to `finish` at t = duration, then constant."""
    if t >= duration:  # also where there is nothing to anneal, duration = 0
        return finish
    return start + (finish - start) * max(t / duration, 0.0)


def hold_decay(start: float, finish: float, hold: float, end: float, progress: float) -> float:
    """`start` until the share `hold` of training, exponential to `finish` at `end`, then 0."""
    if progress < hold:
        return start
    if progress >= end or start == 0:
        return 0.0
    share = (progress - hold) / (end - hold)
    return start * float((finish / start) ** share)
