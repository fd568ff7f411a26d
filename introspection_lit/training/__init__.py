"""The Lightning run: options, set-up, module, data module, strategies, checkpoints."""
