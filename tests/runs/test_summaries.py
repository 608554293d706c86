"""What TensorBoard shows of a run beside its curves."""

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bytelm.runs import summaries

VALUES = {"gpt.d_model": 16, "gpt.position": "Rotary", "gpt.position.base": 10000.0}


def test_settings_that_were_varied_are_marked():
    experiment, *_ = summaries.settings(VALUES, "val/bpb", {"gpt.position", "trainer.logger"})
    content = HParamsPluginData.FromString(experiment.value[0].metadata.plugin_data.content).experiment
    assert {info.name: info.differs for info in content.hparam_infos} == {
        "gpt.d_model": False,
        "gpt.position": True,
        "gpt.position.base": False,
    }


def test_without_varied_settings_the_list_is_left_to_tensorboard():
    tags = [summary.value[0].tag for summary in summaries.settings(VALUES, "val/bpb", {"trainer.logger"})]
    assert tags == ["_hparams_/session_start_info", "_hparams_/session_end_info"]
