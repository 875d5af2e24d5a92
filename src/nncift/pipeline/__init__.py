"""The stages of a run, in rooms by what they do; `select.py` is the table of contents."""
