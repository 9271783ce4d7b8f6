"""Training: one loop, the stage contract, checkpoints."""
