"""Train an encoder on groups of views."""
