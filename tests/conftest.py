"""That this file is here lets tests of every folder import the modules that lie beside it."""
