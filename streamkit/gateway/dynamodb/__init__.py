"""A small DynamoDB for lease tables, so that unmodified KCL workers need nothing beside streamkit.

Tables and items are notes in the metadata store; a conditional write reads the note, evaluates, and swaps it with the
revision that was read, so any number of nodes may serve one table. Not a general DynamoDB: no streams, backups, local
indexes, global tables or PartiQL; a table holds some 100,000 items.

Pure: values, paths, expressions, conditions, updates, legacy, keys, definitions. With the store: store, tables, items,
transactions, reads. `service` puts them together; read `items` first.
"""

from streamkit.gateway.dynamodb.service import open_dynamodb

__all__ = ["open_dynamodb"]
