"""The CogVideoX 3D transformer."""
