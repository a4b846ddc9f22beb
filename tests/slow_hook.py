"""A hook for trainings that a test means to interrupt: without it a small encoder is done before the kill."""

import time


def slow_step(figures: dict[str, float]) -> None:
    time.sleep(0.5)
