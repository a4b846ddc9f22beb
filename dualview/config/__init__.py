"""Strict, frozen settings of each verb, and how they are loaded from YAML."""
