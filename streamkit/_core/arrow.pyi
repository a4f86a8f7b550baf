from typing import Any

from streamkit._core.batch import Batch

def arrow_columns(batch: Batch[Any]) -> Any:
    """A pyarrow.RecordBatch of an opened batch; see Batch.to_arrow. Raises InvalidUse when pyarrow is missing."""
