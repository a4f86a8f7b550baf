"""As amazon_kclpy.checkpoint_error."""

from streamkit.compat.checkpoints import CheckpointError as CheckpointError
