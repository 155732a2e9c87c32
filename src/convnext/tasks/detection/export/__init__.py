"""Export of detectors to files, and backends for inference."""

from convnext.tasks.detection.export.exported import open_network
from convnext.tasks.detection.export.file import check_settings, export_spec

__all__ = ["check_settings", "export_spec", "open_network"]
