"""Groups to a trained encoder."""
