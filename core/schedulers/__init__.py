"""Noise schedules, time step lists and the two samplers of CogVideoX. Nothing here imports MindSpore."""
