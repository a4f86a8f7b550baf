"""The command line: nouns, then verbs; tables for eyes, JSON lines for pipes.

Not for logic: a command asks the client library (or, for `serve`, the node) and prints the answer. Nothing
imports this room. Commands are loaded when they are called, so that `streamkit --help` imports click alone.
Called by people and scripts. Read `main.py` first, then `invocation.py`.
"""
