"""What an engine of a test reads out of a prompt."""


def inside(prompt: str, tag: str) -> str:
    """The text in the last block of this name."""
    return prompt.rsplit(f"<{tag}>\n", 1)[1].partition(f"\n</{tag}>")[0]
