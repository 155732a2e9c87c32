"""ConvNeXt, the road that leads to it, and everything to train, use and deploy it.

The public names below are imported when first used, so that `import convnext` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.config import NetworkConfig as NetworkConfig
    from convnext.cost import Cost as Cost
    from convnext.cost import cost as cost
    from convnext.family import create_model as create_model
    from convnext.family import list_models as list_models
    from convnext.roadmap import roadmap as roadmap

__version__ = "0.1.0"
