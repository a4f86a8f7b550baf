"""The binary wire without a wire: bytes in, messages out.

Not for sockets, clocks or routing: broker and client own those. `docs/formats.md` draws the frame; read
`messages.py` for what can be said, `frames.py` for how it is framed, `connection.py` for when.
"""
