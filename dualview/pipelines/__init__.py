"""The steps of the command line, each spread over a Ray cluster."""
