class IdleLearner:
    """The checkout's own algorithm; it only looks at its batches."""

    def __init__(self, mac, scheme, logger, args):
        self.steps = 0

    def train(self, batch, t_env, episode_num):
        self.steps += int(batch["filled"].sum())
