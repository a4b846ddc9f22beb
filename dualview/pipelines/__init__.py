"""One module or package per command, each of which spreads its work over a Ray cluster."""
