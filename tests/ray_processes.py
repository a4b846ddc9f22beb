"""Ray's processes of a test's own cluster, to be killed."""

import psutil


def workers_of(kind: str) -> list[psutil.Process]:
    """Those whose title names this actor; the cluster's raylet is a child of this process, and another's is not."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(kind in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return found
