"""Training a stage: the worker, the loop, the optimiser step, checkpoints."""
