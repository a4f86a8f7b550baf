"""What a Python user pays for: records put one by one, and handled one by one, with the client libraries people use.

Servers are those of `benchmarks.peers`. Start with `library.py` (what each library is asked to do), then `works.py`.
"""
