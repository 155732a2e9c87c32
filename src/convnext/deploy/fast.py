"""A network that switches to a faster backend while it works, if enough work is left.

It starts unmodified, bit for bit, and measures its speed, because jobs of a few seconds would not
gain from any change. For jobs of minutes it switches to the folded network, which costs almost
nothing to build. For jobs much longer than a search, or with a cached result, it switches to the
fastest backend (`convnext.deploy.optimize`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convnext.deploy.backends import Backend
from convnext.deploy.optimize import Known, Tunable, known_backend, tuner_of
from convnext.deploy.runtimes import Exported
from convnext.hardware.system import keep_freed_memory
from convnext.hardware.tuner import BUDGET_S, timed
from convnext.hardware.tuning_cache import cache_file
from convnext.recipes.schema import Speedup
from convnext.results import Conditions
from convnext.weights.checkpoint import EXPORTED

# Remaining work, in seconds of the unmodified network, from which the network is folded.
WORTH_FOLDING_S = 10.0
# Above this, a search pays off several times over: backends found so far are 1.3 times as fast.
WORTH_SEARCHING_S = 10 * BUDGET_S
# Batch size of a search on a CPU, where larger batches are not faster but take longer to measure.
NUM_EXAMPLES = 8

SEARCHING = (
    f"searching for the fastest backend on this machine, once, for about {BUDGET_S:.0f} s; "
    "--no-fast turns this off"
)

TOO_FEW = "eager (too few images to gain from another backend)"

Choice = Literal["wait", "stay", "fold", "known", "search"]


class Fast(nn.Module):
    """Wraps a network, with the same interface, and speeds it up while it works through a job.

    Args:
        model: A network in evaluation mode, on its device.
        precision: The caller's precision.
        num_images: Number of images of the job.
        backend: How it is run. Unless "eager", on a CPU with Linux's C library, this process keeps
            the memory that it frees from then on (`convnext.hardware.system`).
        keep: Modify a copy of the network; otherwise the network may be folded in place.
        note: Called with a line that states the choice and the reason.

    `watch` counts finished images. A network with its own tuner, such as a detector, switches to
    its default backend instead of the folded network, and is measured on the first images.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: str,
        num_images: int,
        backend: Speedup = "fastest",
        keep: bool,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.form: Backend | None = None
        self._model: nn.Module = model
        self._device = device
        self._precision = precision
        self._num_images = num_images
        self._note = note
        self._done = 0
        self._seconds = 0.0
        # On other devices the first call includes initialization and is not representative.
        self._warm = device.type == "cpu"
        self._uncounted = 0
        self._sizes: set[tuple[int, ...]] = set()
        self._most = 0
        self._keep = keep
        # An exported file already has its backend.
        exported = getattr(model, "exported", None)
        self._file: Exported | None = exported if isinstance(exported, Exported) else None
        self._decided = backend != "fastest" or self._file is not None
        self._eager_is_fastest = False
        if backend != "eager" and device.type == "cpu":
            keep_freed_memory()
        if backend == "folded" and self._file is None:
            tuned = tuner_of(model).first(device, precision, inplace=not keep)
            self._model, self.form = tuned, tuned.form
        self._backend = backend

    def conditions(self, num_images: int, split: str) -> Conditions:
        """Return how this network was run, after the job."""
        precision, words, form = self._precision, "eager", self.form
        if self._file is not None:
            precision = str(self._file.graph["precision"])
            words = f"{EXPORTED[self._file.path.suffix]} file"
        elif form is not None and form.folded:
            precision = form.precision
            kind = "folded" if form.dense == "direct" else f"folded, {form.dense}"
            words = kind if self._backend == "folded" else f"fastest ({form})"
        elif self._backend == "fastest":
            words = "fastest (eager)" if self._eager_is_fastest else TOO_FEW
        return Conditions(num_images=num_images, split=split, precision=precision, backend=words)

    def watch(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """Return a function that counts images and then calls `advance`."""

        def count(num: int) -> None:
            self._done += num
            advance(num)

        return count

    def forward(self, images: Any, **options: Any) -> Any:
        """Call the network."""
        if not self._decided:
            self._decide(images)
        if self._decided:
            return self._model(images, **options)
        outputs, seconds = timed(partial(self._model, images, **options), self._device)
        self._seconds += seconds
        return outputs

    def _decide(self, images: Any) -> None:
        if not self._warm and self._done:
            self._warm, self._uncounted, self._seconds = True, self._done, 0.0
        tuner = tuner_of(self._model)
        example = images if isinstance(self._model, Tunable) else self._example(images)
        skipped = self._uncounted
        left = seconds_left(self._seconds, self._done - skipped, self._num_images - skipped)
        known: Known | None = None
        if left is not None and left >= WORTH_FOLDING_S and example is not None:
            known = known_backend(cache_file(), tuner.key(example, self._precision))
        if known is not None and not known.form.folded:
            self._decided = self._eager_is_fastest = True
            return
        gain = 0.0 if known is None else (left or 0.0) * (1 - 1 / known.ratio)
        choice = choose(
            left,
            gain=gain,
            build_seconds=0.0 if known is None else known.build_seconds,
            is_known=known is not None,
            can_search=example is not None,
        )
        if choice == "wait":
            return
        self._decided = True
        if choice == "stay":
            return
        tuned = None
        if choice == "known" and known is not None:
            tuned = tuner.known(known, example, note=self._note)
        elif choice == "search":
            self._note(SEARCHING)
            tuned = tuner.find(example, precision=self._precision, note=self._note)
        if tuned is None:  # There may not be enough time for a search.
            tuned = tuner.first(self._device, self._precision, inplace=not self._keep)
        self._model, self.form = tuned, tuned.form

    def _example(self, images: Any) -> Tensor | None:
        """Return a batch of the usual size to measure on; None if image sizes vary."""
        if not isinstance(images, Tensor) or not len(images):
            return None
        self._sizes.add(tuple(images.shape[1:]))
        self._most = max(self._most, len(images))
        if len(self._sizes) > 1:
            return None
        num = min(self._most, NUM_EXAMPLES) if self._device.type == "cpu" else self._most
        # Repeat images if unreadable ones are missing from this batch.
        return images[torch.arange(num, device=images.device) % len(images)]


def seconds_left(seconds: float, done: int, total: int) -> float | None:
    """Estimate the remaining seconds from those of `done` of `total` images; None at first."""
    return None if done == 0 or seconds == 0 else seconds * (total - done) / done


def choose(
    left: float | None, *, gain: float, build_seconds: float, is_known: bool, can_search: bool
) -> Choice:
    """Choose what to do with `left` seconds of work remaining for the unmodified network.

    Args:
        left: None if nothing is done yet.
        gain: Seconds that the cached backend would save.
        build_seconds: Seconds for building it.
        is_known: Whether there is a cached backend.
        can_search: Whether all batches have the same shape.
    """
    if left is None:
        return "wait"
    if left < WORTH_FOLDING_S:
        return "stay"
    if is_known:
        return "known" if gain > build_seconds else "fold"
    return "search" if can_search and left > WORTH_SEARCHING_S else "fold"
