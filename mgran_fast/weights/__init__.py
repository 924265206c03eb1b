"""Checkpoints: safetensors with the configuration beside the weights."""
