"""What people and machines see of a node: numbers at scrape time, one line for each event.

Not for counting (whoever does the work counts, in plain integers) and not for serving HTTP. Read `metrics.py`
for the catalogue of names, `logs.py` for the form of a line.
"""
