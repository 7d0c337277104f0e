from types import SimpleNamespace


class Logger:
    """Takes one number at a time."""

    def __init__(self):
        self.stats = {}
        self.console_logger = SimpleNamespace(info=print)

    def log_stat(self, key, value, t):
        self.stats.setdefault(key, []).append((t, float(value)))
