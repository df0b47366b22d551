"""CogVideoX's causal 3D autoencoder."""
