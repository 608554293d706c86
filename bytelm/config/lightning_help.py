"""Help texts that replace Lightning's and jsonargparse's where these do not describe bytelm.

Lightning's texts name its own defaults and what it does with an option. bytelm has other defaults, rejects some options
and knows more values of others (docs/lightning.md, docs/runs.md). The texts of other options are Lightning's.
"""

REJECTED = "Rejected:"  # first word of the text of an option that has to keep its default
_ENDS = "time_budget.limit ends a run"
_CHECKPOINT = "best or last of the newest run, a checkpoint, or the folder of a run."

TEXTS = {
    "config": "A YAML file, the name of a shipped config (the command `configs` lists them), or the text of a config. "
    "Several are merged in their order.",
    "print_config": "Print the resolved config and exit. `=skip_default` leaves out the defaults, `=skip_unset` "
    "values that are not set.",
    "seed_everything": "Seed of the run: initial weights, order of the data. true for a random one.",
    "trainer": "A file with this section.",
    "model": "A file with this section.",
    "time_budget": "A file with this section.",
    "checkpoint": "A file with this section.",
    "last_checkpoint": "A file with this section.",
    "divergence": "A file with this section.",
    "throughput": "A file with this section.",
    "samples": "A file with this section.",
    "data": "The corpus: a class, with its options as `--data.<option>`.",
    "lr_schedule": "The multiplier of all learning rates: a class, with its options as `--lr_schedule.<option>`.",
    # Lightning's Trainer
    "trainer.accelerator": "Kind of device: cpu, gpu, cuda, mps, or auto for the best of this machine.",
    "trainer.strategy": "How several devices share the work: auto, ddp, fsdp or a class (docs/guides/several-gpus.md).",
    "trainer.devices": "Number of devices, a list of GPUs such as [0, 1], or auto. auto is one process on CPUs, and "
    "all GPUs.",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true; null is 32-true. FP8 is a "
    "plugin (docs/gpt2.md).",
    "trainer.logger": "A logger, a list of them, true or false. null and true are TensorBoard's in the run's folder, "
    "which for validate, test and predict is only written to if it is asked for (docs/runs.md).",
    "trainer.max_epochs": f"{REJECTED} {_ENDS}. Only -1, no limit, is accepted.",
    "trainer.min_epochs": f"{REJECTED} {_ENDS}, also before a minimum.",
    "trainer.max_steps": f"{REJECTED} {_ENDS}, for example after `500 steps`. Only -1, no limit, is accepted.",
    "trainer.min_steps": f"{REJECTED} {_ENDS}, also before a minimum.",
    "trainer.max_time": f"{REJECTED} {_ENDS}.",
    "trainer.limit_train_batches": "An epoch ends after this number of batches (int) or share of its batches (float); "
    "null is all. The next epoch continues in the text.",
    "trainer.limit_val_batches": "Batches of a validation: a number (int) or a share (float); null is all. With 0 the "
    "run has no score.",
    "trainer.limit_test_batches": "Batches of test: a number (int) or a share (float); null is all.",
    "trainer.limit_predict_batches": "Batches of predict: a number (int) or a share (float); null is all.",
    "trainer.overfit_batches": "Repeats the first batches of the run's order: this number (int) or share of an epoch "
    "(float). Validation uses the same number.",
    "trainer.val_check_interval": "When a run is validated, beside its end. auto: every 10% of the run, where that is "
    "cheap. `5%`, `500 steps`, `300 Mtok` or `10m` of the run; an int: batches; a float: a share of an epoch; "
    '"DD:HH:MM:SS": an interval of wall-clock time; null: only at the end (docs/runs.md).',
    "trainer.check_val_every_n_epoch": "Validates at the end of every n-th epoch; an int of val_check_interval then "
    "counts batches of an epoch. null: epochs do not matter.",
    "trainer.num_sanity_val_steps": "Batches of a validation before training; -1 is all.",
    "trainer.log_every_n_steps": "Interval of logged training steps; 0 logs none.",
    "trainer.enable_checkpointing": "Whether a run writes best.ckpt and last.ckpt (sections checkpoint and "
    "last_checkpoint); null is true.",
    "trainer.enable_progress_bar": "Whether a bar shows steps, loss, speed and the time left; null is true.",
    "trainer.enable_model_summary": "Whether modules and their parameters are printed before a run.",
    "trainer.accumulate_grad_batches": "Batches of an optimizer step.",
    "trainer.gradient_clip_val": "Largest norm (or value) of gradients; null or 0 for no clipping.",
    "trainer.gradient_clip_algorithm": "What is clipped: norm, which null is too, or value.",
    "trainer.barebones": f"{REJECTED} a run logs its score and its record.",
    "trainer.reload_dataloaders_every_n_epochs": f"{REJECTED} there is nothing to reload. Only 0 is accepted.",
    "trainer.default_root_dir": "Folder that runs/ is in; null is the working directory.",
    "trainer.enable_autolog_hparams": "Whether loggers get the settings of a run.",
    "trainer.model_registry": f"{REJECTED} nothing is uploaded.",
    "trainer.use_distributed_sampler": "Without effect on bytelm's data, which deal rows to ranks themselves.",
    # ModelCheckpoint
    "checkpoint.dirpath": "Folder of the checkpoints; null is checkpoints/ in the run's folder.",
    "checkpoint.filename": "Name of the checkpoint, without .ckpt; it can contain values, as in `{step}`. With a "
    "save_top_k other than 1 it contains the step, and best.ckpt is a link to the best file.",
    "checkpoint.monitor": "The value that is compared; val/loss for tokens without a known number of bytes.",
    "checkpoint.save_last": "Lightning's copy of the newest checkpoint, in another dirpath. In the run's folder it is "
    "rejected: the section last_checkpoint writes last.ckpt.",
    "checkpoint.save_top_k": "Number of checkpoints with the best values to keep; 0 for none, -1 for all.",
    "checkpoint.mode": "Whether lower (min) or higher (max) values are better.",
    "checkpoint.every_n_train_steps": "Saves after this number of steps, instead of after validations. Not with "
    "train_time_interval or every_n_epochs.",
    "checkpoint.every_n_epochs": "Saves after every n-th epoch that ends with a validation. null: after each "
    "validation. Not with every_n_train_steps or train_time_interval.",
    "checkpoint.save_on_train_epoch_end": "true: saves at the ends of epochs; false and null: after validations.",
    # Trainer.fit, validate, test and predict
    "verbose": "Whether Lightning prints a table of the scores, beside bytelm's lines.",
    "weights_only": "Loads checkpoints without unpickling code. false only for a checkpoint whose origin you trust.",
    "return_predictions": "Without effect on the file that predict writes.",
}
CKPT_PATH = {
    "fit": "Resumes a run: last (of the newest run of the experiment; if there is none, a new run starts), a "
    "checkpoint, or the folder of a run.",
    "validate": f"What is scored: {_CHECKPOINT}",
    "test": f"What is scored: {_CHECKPOINT}",
    "predict": f"What predicts: {_CHECKPOINT}",
}
