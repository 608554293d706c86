"""What TensorBoard shows of a run beside its curves: the settings, for HPARAMS, and a page of charts.

HPARAMS compares runs by their settings. It first shows five of these, those that are said to differ between runs; with
some two hundred settings of a run, others would hide them. A run says which of its settings were varied: the user has
given them as options, or beside the base of the config. TensorBoard takes the list from any one run. Runs in which
nothing was varied write no list: if no run has one, TensorBoard compares the settings itself.

CUSTOM SCALARS shows the charts of `LAYOUT`, the score first. TIME SERIES sorts tags by name, and has the score last.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import custom_scalars, hparams

# Tags are regular expressions.
LAYOUT = {
    "score": {
        "bits per byte": ["Multiline", ["^val/bpb$"]],
        "loss: training and validation": ["Multiline", ["^train/loss$", "^val/loss$"]],
    },
    "training": {
        "tokens per second": ["Multiline", ["^throughput/tokens_per_sec$"]],
        "norm of the gradients": ["Multiline", ["^grad/norm$"]],
        "learning rates": ["Multiline", ["^lr/"]],
        "used share of the budget": ["Multiline", ["^time_budget/progress$"]],
    },
}


def settings(values: Mapping[str, Any], metric: str, varied: Iterable[str]) -> list[Summary]:
    """Returns the summaries of a run's settings.

    Args:
        values: The settings: numbers, texts, booleans.
        metric: Tag of the score.
        varied: Names of settings that were varied.
    """
    experiment, *others = hparams(dict(values), {metric: 0.0})
    names = set(varied)
    plugin_data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = content.SerializeToString()
    return [experiment, *others] if any(info.differs for info in content.experiment.hparam_infos) else others


def layout() -> Summary:
    """Returns the summary of the page of charts."""
    return custom_scalars(LAYOUT)
