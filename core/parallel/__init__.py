"""Several processes on one model: who talks to whom, with what, and at what cost (docs/design/011)."""
