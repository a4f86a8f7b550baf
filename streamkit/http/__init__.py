"""One listener: HTTP/1.1 and HTTP/2 on one port, cleartext or TLS, with limits and time-outs; nothing about streams.

A handler makes a response of a request, whichever protocol brought it. The engines are libraries (httptools, h2);
lifecycles, bounds and back-pressure are here. Called by the gateway, and by `node` for the health pages.
Read `exchange.py`, then `listener.py`.
"""
