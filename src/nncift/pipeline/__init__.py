"""The stages of a run, a module each; `select.py` is the table of contents."""
