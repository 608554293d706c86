"""Names that other programs have for keys of a config, which messages about an unknown key suggest.

Names that are similar (n_layer, n_layers) are found without this table.
"""

# Each with the names here, of which the first that is accepted at the place is meant.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "wd": ("weight_decay",),
    "n_embd": ("d_model",),
    "dim": ("d_model",),
    "hidden_size": ("d_model",),
    "intermediate_size": ("d_ff",),
    "num_layers": ("n_layers",),
    "num_hidden_layers": ("n_layers",),
    "depth": ("n_layers",),
    "heads": ("n_heads",),
    "num_heads": ("n_heads",),
    "num_attention_heads": ("n_heads",),
    "vocab": ("vocab_size",),
    "block_size": ("seq_len", "max_seq_len"),
    "context_length": ("seq_len", "max_seq_len"),
    "sequence_length": ("seq_len", "max_seq_len"),
    "warmup_steps": ("warmup",),
    "dataset": ("data",),
    "device": ("accelerator",),
    "length": ("max_new_tokens",),
    "max_tokens": ("max_new_tokens",),
    "checkpoint_path": ("ckpt_path",),
    "grad_clip": ("gradient_clip_val",),
    "max_iters": ("limit",),  # of the time budget
    "total_batch_size": ("batch_size",),
    "device_batch_size": ("batch_size",),
    "eval_interval": ("val_check_interval",),
    "log_interval": ("log_every_n_steps",),
    "out_dir": ("experiment",),
    "dtype": ("precision",),
    "wandb_log": ("logger",),
    "gradient_accumulation_steps": ("accumulate_grad_batches",),
}
