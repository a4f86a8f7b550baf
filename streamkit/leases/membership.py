"""When a worker counts as gone, and when a drain has taken too long. Volatile: a restart starts every time-out anew.

A worker is alive for `membership_ms` after its last heartbeat was received. A closed connection shortens what is
left to one heartbeat (three tenths of the time-out): enough to come back, short enough to be missed quickly.
"""

from __future__ import annotations

Member = tuple[str, int]                   # (application, session)
Lease = tuple[str, bytes]                  # (application, shard)


def heartbeat_ms(membership_ms: int) -> int:
    """How often a worker shows itself: three tenths of its time-out."""
    return membership_ms * 3 // 10


class Membership:
    """Deadlines on the coordinator's monotonic clock."""

    def __init__(self) -> None:
        self.deadlines: dict[Member, int] = {}
        self.drains: dict[Lease, int] = {}
        self.leaving: set[Member] = set()  # about to leave: they keep what they have and get nothing
        self._timeouts: dict[Member, int] = {}
        self._connections: dict[int, set[Member]] = {}
        self._connection_of: dict[Member, int] = {}

    def beat(self, member: Member, membership_ms: int, connection: int, now_ms: int) -> None:
        """A sign of life, over that connection (0: none known)."""
        self.deadlines[member] = now_ms + membership_ms
        self._timeouts[member] = membership_ms
        if self._connection_of.get(member, 0) != connection:
            self._forget_connection(member)
            if connection:
                self._connection_of[member] = connection
                self._connections.setdefault(connection, set()).add(member)

    def connection_lost(self, connection: int, now_ms: int) -> None:
        for member in self._connections.pop(connection, ()):
            del self._connection_of[member]
            self.deadlines[member] = min(self.deadlines[member], now_ms + heartbeat_ms(self._timeouts[member]))

    def forget(self, member: Member) -> None:
        self.deadlines.pop(member, None)
        self._timeouts.pop(member, None)
        self.leaving.discard(member)
        self._forget_connection(member)

    def _forget_connection(self, member: Member) -> None:
        connection = self._connection_of.pop(member, 0)
        if connection:
            members = self._connections[connection]
            members.discard(member)
            if not members:
                del self._connections[connection]

    def expired(self, now_ms: int) -> list[Member]:
        """Members past their deadline, in a fixed order."""
        return sorted(member for member, deadline in self.deadlines.items() if deadline <= now_ms)

    def overdue(self, now_ms: int) -> list[Lease]:
        """Leases whose owner had its time to finish, in a fixed order."""
        return sorted(lease for lease, deadline in self.drains.items() if deadline <= now_ms)
