"""A small HTTP/1.1 server for probes and scrapers: GET and HEAD, a few fixed paths, tight limits.

Nothing about streams: a handler maps a path to an answer. The parsing engine is httptools. Read `listener.py`.
"""
