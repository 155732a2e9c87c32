"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

# Child processes of tests share the cores as well: two threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["shard_server"]

# Two test processes share two cores; more threads than cores wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def facts_of_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep reports and facts about images out of the user's folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convnext.data.facts.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the small real data sets; skips the test if it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CONVNEXT_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the real data sets are absent; set CONVNEXT_DATA to their folder")
    return folder


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """A function (width, height, mode, seed) -> image of random pixels."""

    def make(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
        bands = len(Image.new(mode, (1, 1)).getbands())
        shape = (height, width) if bands == 1 else (height, width, bands)
        values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        return Image.frombytes(mode, (width, height), values.tobytes())

    return make


@pytest.fixture
def make_folder(
    tmp_path: Path, noise: Callable[..., Image.Image]
) -> Callable[[dict[str, int]], Path]:
    """A function {"train/cat": 3, ...} -> folder with that many different PNG files in each."""

    def make(counts: dict[str, int], name: str = "data", size: tuple[int, int] = (20, 16)) -> Path:
        root = tmp_path / name
        seed = 0
        for below, count in counts.items():
            folder = root / below
            folder.mkdir(parents=True)
            for i in range(count):
                seed += 1
                noise(*size, seed=seed).save(folder / f"{i:03d}.png")
        return root

    return make


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Give every tensor of a network values that affect its logits, and return it in eval mode.

    Fresh networks hide mistakes: norms that do nothing, running statistics of 0 and 1, and layer
    scales of 1e-6 that switch every block off.
    """

    def draw(model: nn.Module, seed: int = 0) -> nn.Module:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                value = torch.rand(tensor.shape, generator=random)
                if not tensor.is_floating_point():
                    continue
                if name.endswith(("gamma", "layer_scale", "layer_scale_parameter")):
                    tensor.copy_(0.05 + 0.1 * value)
                elif tensor.ndim > 1:
                    fan_in = tensor[0].numel()
                    tensor.copy_((value - 0.5) * (12 / fan_in) ** 0.5)
                elif name.endswith(("weight", "running_var")):
                    tensor.copy_(0.5 + value)
                else:
                    tensor.copy_(0.4 * (value - 0.5))
        return model.eval()

    return draw
