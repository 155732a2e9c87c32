"""Networks by name, without weights: the family, the roadmap, and the networks of timm.

Dense networks, which stand on one of these, are built by their tasks; `convnext.create_model` knows
them all.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from convnext.models.config import NetworkConfig, change
from convnext.models.family import FAMILY
from convnext.models.roadmap import REGIMES, roadmap
from convnext.names import nearest

if TYPE_CHECKING:
    from convnext.models.network import Network
    from convnext.models.timm import TimmNetwork


def network_configs() -> dict[str, NetworkConfig]:
    """Return the configuration of every network of our own by name: the family, then the rungs."""
    rungs = {
        f"roadmap/{regime}/{rung.name}": rung.config
        for regime in REGIMES
        for rung in roadmap(regime)
    }
    return FAMILY | rungs


def list_networks(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern: the family, then the rungs.

    The hundreds of networks of timm are listed only for a pattern that begins with `timm/`.
    """
    if pattern.startswith("timm/"):
        from convnext.models.timm import list_peers

        return list_peers(pattern)
    return [name for name in network_configs() if fnmatchcase(name, pattern)]


def check_name(name: str) -> None:
    """See that there is a network of this name, without building it.

    Raises:
        ValueError: If there is none; the nearest is suggested.
    """
    if name.startswith("timm/"):
        from convnext.models.timm import list_peers

        if name not in list_peers(name):
            near = nearest(name, list_peers("timm/*"))
            raise ValueError(f"timm has no model {name.removeprefix('timm/')!r}{near}")
    elif name not in network_configs():
        raise ValueError(f"there is no model {name!r}{nearest(name, network_configs())}")


def create_network(name: str, **changes: Any) -> Network | TimmNetwork:
    """Build a classifier or a backbone by name, with random weights.

    Args:
        name: A member of the family, `roadmap/<regime>/<rung>`, or `timm/<name>`.
        **changes: As for `create_model`.

    Raises:
        ValueError: If the name or a change is unknown, or a value is invalid.
    """
    if name.startswith("timm/"):
        from convnext.models.timm import TimmNetwork

        return TimmNetwork(name.removeprefix("timm/"), **changes)
    from convnext.models.network import Network

    configs = network_configs()
    if name not in configs:
        raise ValueError(f"there is no model {name!r}{nearest(name, configs)}")
    return Network(change(configs[name], **changes), name=name)
