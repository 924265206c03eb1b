"""Fast inference of a trained model."""
