"""The one expression language: conditions on records, as SQL writes them, for filters, handlers and queries.

Not for evaluating them (`_core.conditions` does, a record at a time) nor for whole SELECT statements. Called by
readers, consumers, the broker and the command line. Read `condition.py` for what they use, then `grammar.py`.
"""
