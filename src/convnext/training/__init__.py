"""The training loop of all tasks and its parts; none of them depends on a task."""
