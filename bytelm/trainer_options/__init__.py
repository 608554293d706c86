"""The options of Lightning's Trainer: those that bytelm rejects, and Lightning's errors as errors of an option."""
