"""The demonstration: a month of flights through a durable stream into two workers, one of which is killed.

`make demo` runs `__main__.py`. `data.py` reads the flights, `totals.py` is the worker and the place to look first: it
keeps totals in a database such that no flight is missed or counted twice, whoever dies when.
"""
