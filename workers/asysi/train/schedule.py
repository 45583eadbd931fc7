"""The learning rate over a run: a pure function of the step, so that a resumed run needs no state."""

import math

from asysi.train.config import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step.

    Args:
        schedule: shape of the schedule.
        step: number of the step, from 0.
        steps: number of steps of the whole run.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    shape = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * min(1.0, done))) / 2,
    }[schedule.name]
    if schedule.name == "constant":
        return 1.0
    return schedule.floor + (1 - schedule.floor) * max(0.0, shape)
