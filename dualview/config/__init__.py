"""Each verb's settings, frozen and strict, and how YAML becomes them."""
