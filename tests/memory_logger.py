"""A logger that keeps all values in memory, for tests."""

from lightning.pytorch.loggers import Logger


class MemoryLogger(Logger):
    """`values[tag]` is the list of (step, value) logged, and `rows` that of (step, tags) in the order of logging."""

    name = "memory"
    version = 0

    def __init__(self):
        super().__init__()
        self.values = {}
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, tuple(metrics)))
        for tag, value in metrics.items():
            self.values.setdefault(tag, []).append((step, value))

    def log_hyperparams(self, *args, **kwargs):
        pass
