"""Training a stage: model and adapter, tokenized rows, trainer, checkpoints."""
