"""The one training loop and its parts; none of them knows a task."""
