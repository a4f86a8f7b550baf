"""`streamkit cluster`: how its nodes are, and moving shards between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamkit.cli.invocation import Group, Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, note, size, table

if TYPE_CHECKING:
    from streamkit.client.client import AsyncClient
    from streamkit.protocol import messages as m

A = TypeVar("A")
_POLL_SECONDS = 0.5
_WAIT_SECONDS = 600.0


@click.group(cls=Group, no_args_is_help=True)
def cluster() -> None:
    """Show a cluster's nodes, and move shards between them."""


@cluster.command()
@click.option("--check", is_flag=True, help="Exit 1 when a node is down or a shard lacks a copy or a leader.")
@common
@pass_invocation
def status(invocation: Invocation, check: bool) -> None:
    """Show each node, and each shard that lacks a copy or a leader: why, and what to do.

    LAG: records that the node's copies lack of what the leaders hold. A dash: the node does not answer.
    """
    found = invocation.run(_with_client(invocation, _describe))
    healthy = all(node.live for node in found.nodes) and set(found.trouble_counts) <= {"moving"} and not found.store
    if invocation.json:
        _emit_status(found, healthy)
    elif invocation.quiet:
        for node in found.nodes:
            click.echo(node.node)
    else:
        _print_status(found)
    if check and not healthy:
        raise click.exceptions.Exit(1)


@cluster.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="The node may take leaders and copies again.")
@click.option("--no-wait", is_flag=True, help="Return at once; streamkit cluster status shows how it goes on.")
@click.option(
    "--wait-seconds", type=click.FloatRange(min=0), default=_WAIT_SECONDS, show_default=True, help="Wait this long.",
)
@common
@pass_invocation
def drain(invocation: Invocation, node: str, undo: bool, no_wait: bool, wait_seconds: float) -> None:
    """Move everything that a node leads and holds to other nodes, and wait for it.

    Afterwards the node can be stopped for good. A copy for which there is no other node stays, and is said.
    """
    from streamkit.protocol import messages as m

    async def work(client: AsyncClient) -> m.ShardsMoving:
        deadline_s = time.monotonic() + wait_seconds
        before = -1
        while True:
            left = await _ask(client, m.DrainNode(node, undo), m.ShardsMoving)
            if left.shards == 0 or undo or no_wait:
                return left
            if left.shards != before:
                note(f"{node}: {_shards(left.shards)} to go")
            before = left.shards
            if time.monotonic() >= deadline_s:
                raise _still_moving(node, left.shards, wait_seconds)
            await asyncio.sleep(_POLL_SECONDS)

    left = invocation.run(_with_client(invocation, work))
    facts = {"node": node, "state": "active" if undo else "draining", "moving": left.shards, "staying": left.staying}
    if invocation.json:
        emit("drain", facts)
    elif undo:
        click.echo(f"{node} may take leaders and copies again")
    elif left.shards:
        click.echo(f"{node} is being drained, {_shards(left.shards)} to go")
    elif left.staying:
        click.echo(f"{node} leads nothing any more; copies of {_shards(left.staying)} stay: there is no other node")
    else:
        click.echo(f"{node} holds nothing any more; it can be stopped: streamkit cluster remove {node}")


@cluster.command()
@click.argument("shard", metavar="STREAM/SHARD")
@click.option("--to", metavar="NODE", default="", help="This member shall lead the shard.")
@click.option("--replace", metavar="A=B", default="", help="The copy on A shall lie on B.")
@click.option("--no-wait", is_flag=True, help="Return at once; streamkit cluster status shows how it goes on.")
@click.option(
    "--wait-seconds", type=click.FloatRange(min=0), default=_WAIT_SECONDS, show_default=True, help="Wait this long.",
)
@common
@pass_invocation
def move(invocation: Invocation, shard: str, to: str, replace: str, no_wait: bool, wait_seconds: float) -> None:
    """Move a shard's leadership, or one of its copies, and wait for it.

    The shard is named by its number or id, as orders/3. Puts and reads go on meanwhile.
    """
    from streamkit.protocol import messages as m

    out, _, into = replace.partition("=")
    if bool(to) == bool(replace) or bool(replace) != bool(out and into):
        raise click.UsageError("name either --to NODE or --replace A=B")
    stream, ordinal = parse_shard(shard)

    async def work(client: AsyncClient) -> bool:
        await _ask(client, m.MoveShard(stream, ordinal, to, out, into), m.Done)
        deadline_s = time.monotonic() + wait_seconds
        while not no_wait:
            moving = await _moving(client, stream, ordinal)
            if moving is None:
                return True
            if time.monotonic() >= deadline_s:
                raise _still_moving(f"{stream}/{ordinal}", 1, wait_seconds, moving)
            await asyncio.sleep(_POLL_SECONDS / 5)
        return False

    done = invocation.run(_with_client(invocation, work))
    what = f"led by {to}" if to else f"on {into} instead of {out}"
    if invocation.json:
        emit("move", {"stream": stream, "shard": ordinal, "leader": to or None, "out": out or None,
                      "into": into or None, "done": done})  # fmt: skip
    else:
        click.echo(f"{stream}/{ordinal} is {what}" if done else f"{stream}/{ordinal} shall be {what}")


@cluster.command()
@click.argument("node")
@common
@pass_invocation
def add(invocation: Invocation, node: str) -> None:
    """Give a node its share of the shards.

    A node joins by starting: streamkit serve --node-id NAME --cluster URL. New streams use it from then on; this moves
    copies of the streams that there are.
    """
    from streamkit.protocol import messages as m

    moving = invocation.run(_with_client(invocation, lambda client: _ask(client, m.AddNode(node), m.ShardsMoving)))
    if invocation.json:
        emit("add", {"node": node, "moving": moving.shards})
    elif moving.shards:
        click.echo(f"copies of {_shards(moving.shards)} move to {node}; look: streamkit cluster status")
    else:
        click.echo(f"{node} has its share already")


@cluster.command()
@click.argument("node")
@common
@pass_invocation
def remove(invocation: Invocation, node: str) -> None:
    """Forget a node that was drained and stopped.

    Refused while the node runs or holds a copy; when it is the last certain one, that is said.
    """
    from streamkit.protocol import messages as m

    invocation.run(_with_client(invocation, lambda client: _ask(client, m.RemoveNode(node), m.Done)))
    if invocation.json:
        emit("remove", {"node": node})
    else:
        click.echo(f"{node} does not belong to the cluster any more")


@cluster.command("accept-loss")
@click.argument("shard", metavar="STREAM/SHARD")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
@pass_invocation
def accept_loss(invocation: Invocation, shard: str, yes: bool) -> None:
    """Let a shard go on that waits because its copies may lack acknowledged records.

    For when all copies ended uncleanly at once, as by a power cut with durability os, and none is better. The longest
    log of a majority is taken; what it lacks is lost for good. Asks for the shard's name first; without a terminal it
    needs --yes.
    """
    import sys

    from streamkit.errors import InvalidUse
    from streamkit.protocol import messages as m

    stream, ordinal = parse_shard(shard)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidUse(
                f"records of {shard} may be lost, and there is no terminal to ask",
                try_=f"streamkit cluster accept-loss {shard} --yes", shard=shard,
            )
        note("Acknowledged records may be missing from what the shard goes on with.")
        if click.prompt("Type the shard's name to go on", err=True) != shard:
            raise click.Abort
    invocation.run(_with_client(invocation, lambda client: _ask(client, m.AcceptLoss(stream, ordinal), m.Done)))
    if invocation.json:
        emit("accept_loss", {"stream": stream, "shard": ordinal})
    else:
        click.echo(f"{shard} goes on with what its copies hold; look: streamkit cluster status")


def parse_shard(text: str) -> tuple[str, int]:
    """"orders/3" or "orders/shardId-000000000003" → ("orders", 3). Raises click.UsageError."""
    stream, _, shard = text.rpartition("/")
    number = shard.removeprefix("shardId-")
    if not stream or not (number.isascii() and number.isdigit()):
        raise click.UsageError(f'"{text}" is no shard; write it as orders/3')
    return stream, int(number)


# -- asking ----------------------------------------------------------------------------------------------------


async def _with_client(invocation: Invocation, work: Callable[[AsyncClient], Awaitable[A]]) -> A:
    async with invocation.client() as client:
        return await work(client)


async def _ask(client: AsyncClient, message: m.Message, kind: type[A]) -> A:
    answer = await client.call(message)
    assert isinstance(answer, kind), "the protocol pairs requests and answers"
    return answer


async def _describe(client: AsyncClient, troubles_max: int = 1_000) -> m.ClusterDescribed:
    from streamkit.protocol import messages as m

    return await _ask(client, m.DescribeCluster(troubles_max), m.ClusterDescribed)


async def _moving(client: AsyncClient, stream: str, ordinal: int) -> str | None:
    """Why the shard is not where it shall be; None: it is."""
    found = await _describe(client, troubles_max=10_000)
    for trouble in found.troubles:
        if (trouble.stream, trouble.ordinal) == (stream, ordinal) and trouble.kind in ("moving", "no_leader"):
            return trouble.reason
    return None


def _still_moving(what: str, shards: int, seconds: float, reason: str = "") -> Exception:
    from streamkit.errors import TimedOut

    return TimedOut(
        f"{what}: {_shards(shards)} still to go after {seconds:g} s" + (f": {reason}" if reason else ""),
        try_="streamkit cluster status; the move goes on by itself", timeout_ms=int(seconds * 1000), sent=True,
    )


# -- showing ---------------------------------------------------------------------------------------------------


def _emit_status(found: m.ClusterDescribed, healthy: bool) -> None:
    emit(
        "cluster_status",
        {
            "cluster": found.cluster, "controller": found.controller or None, "store": found.store or "ok",
            "healthy": healthy, "shards": found.shards, "troubles": found.trouble_counts,
        },
    )  # fmt: skip
    for node in found.nodes:
        emit("cluster_node", node_facts(node))
    for trouble in found.troubles:
        emit(
            "cluster_trouble",
            {
                "stream": trouble.stream, "shard": trouble.ordinal, "kind": trouble.kind, "reason": trouble.reason,
                "try": trouble.try_,
            },
        )  # fmt: skip


def node_facts(node: m.ClusterNode) -> dict[str, Any]:
    """What --json says of a node; null: it does not answer."""
    return {
        "node": node.node, "state": _state(node), "zone": node.zone or None, "version": node.version,
        "protocol_max": node.protocol_max, "address": node.address or None, "peer_address": node.peer_address or None,
        "leaders": node.leaders, "members": node.members, "learners": node.learners, "uncertain": node.uncertain,
        "lag_records": node.lag_records, "free_bytes": node.free_bytes,
    }  # fmt: skip


def _print_status(found: m.ClusterDescribed) -> None:
    shards = _shards(found.shards)
    controller = f"   controller {found.controller}" if found.controller else ""
    click.echo(f"cluster {found.cluster[:8]}   {len(found.nodes)} nodes   {shards}{controller}")
    if found.store:
        note(f"the coordination store does not answer: {found.store}; puts and reads go on")
    table(
        ("NODE", "STATE", "ZONE", "LEADERS", "MEMBERS", "LEARNERS", "LAG", "FREE", "VERSION", "ADDRESS"),
        [
            (
                node.node, _state(node), node.zone or "–", count(node.leaders), count(node.members),
                count(node.learners), _or_dash(node.lag_records, count), _or_dash(node.free_bytes, size),
                f"{node.version} ({node.protocol_max})", node.address or "–",
            )
            for node in found.nodes
        ],
        right=("LEADERS", "MEMBERS", "LEARNERS", "LAG", "FREE"),
    )  # fmt: skip
    if not found.troubles:
        return
    click.echo("")
    table(
        ("SHARD", "WHAT", "WHY", "TRY"),
        [(f"{t.stream}/{t.ordinal}", t.kind.replace("_", " "), t.reason, t.try_) for t in found.troubles],
    )
    if (more := sum(found.trouble_counts.values()) - len(found.troubles)) > 0:
        click.echo(f"and {_shards(more)} more")


def _state(node: m.ClusterNode) -> str:
    if not node.live:
        return f"down, {node.state}" if node.state != "active" else "down"
    return node.state if node.answers else "silent"


def _or_dash(value: int | None, shown: Callable[[int], str]) -> str:
    return "–" if value is None else shown(value)


def _shards(number: int) -> str:
    return "1 shard" if number == 1 else f"{count(number)} shards"
