"""Training: loss, step, loop."""
