"""Who may reach what: rules, decided from values alone.

Not for sockets, keys on disk or logins. The node asks before it opens anything. Read `policy.py`.
"""
