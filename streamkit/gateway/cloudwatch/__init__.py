"""A sink for PutMetricData, so that the KCL and the KPL can leave their metrics on.

Nothing is durable and nothing can be asked for over the wire: the newest value of each series is kept in memory, for
whoever shows it in the same process. Read `registry`.
"""

from streamkit.gateway.cloudwatch.registry import Registry, Series
from streamkit.gateway.cloudwatch.service import open_cloudwatch

__all__ = ["Registry", "Series", "open_cloudwatch"]
