"""bytelm trains language models under a wall-clock budget.

Start with `gpt.py` for the network, `language_model.py` for training, and `cli.py` for how a run is assembled.
"""

__version__ = "0.2.0"
