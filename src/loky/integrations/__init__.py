"""Other libraries, made to run on this one: a module for each, imported by those who want it."""
