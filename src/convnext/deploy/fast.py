"""A network that takes its fast form by itself, as soon as the work ahead is worth it.

It begins as it was trained, bit for bit, and looks at the clock: what a job of seconds would gain
is less than any change costs. For one of minutes the folded form follows, which costs nothing to
build; for one that outlasts a search by far, or a form that was found before, the best of
`convnext.deploy.optimize`.
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
from convnext.hardware.timer import timed
from convnext.hardware.tuner import BUDGET_S
from convnext.hardware.tuning_cache import cache_file

# Work ahead, in seconds as trained, from which the network changes its form.
WORTH_FOLDING_S = 10.0
# What a search takes comes back several times over: forms found so far are 1.3 times as fast.
WORTH_SEARCHING_S = 10 * BUDGET_S
# Images of a search on a CPU, where more at a time are no faster but take longer to measure.
NUM_EXAMPLES = 8

SEARCHING = (
    f"looking for the fastest form on this machine, for some {BUDGET_S:.0f} s and once; --no-fast "
    "leaves the network as it is"
)

Choice = Literal["wait", "stay", "fold", "known", "search"]


class Fast(nn.Module):
    """A network behind its own interface, which speeds up while it works through a job.

    Args:
        model: In evaluation mode, on its device.
        precision: In which the caller runs it.
        num_images: Of the job.
        enabled: Whether it may change at all.
        keep: Leave the given network as it is, and change a copy; otherwise it is taken over, and
            may be folded in place.
        note: Told in a line what was chosen and why.

    `watch` counts the images that are done. A network with a tuner of its own, such as a detector,
    takes its first form in place of the folded one, and is measured on the first images.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        precision: str,
        num_images: int,
        enabled: bool = True,
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
        # Elsewhere the first call prepares the device, and says nothing of the others.
        self._warm = device.type == "cpu"
        self._uncounted = 0
        self._sizes: set[tuple[int, ...]] = set()
        self._most = 0
        self._keep = keep
        # A file is in its form already.
        is_file = isinstance(getattr(model, "exported", None), Exported)
        self._decided = not enabled or is_file
        if device.type == "cpu":
            keep_freed_memory()

    def watch(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """Return a function that counts images before it tells `advance` of them."""

        def count(num: int) -> None:
            self._done += num
            advance(num)

        return count

    def forward(self, images: Any, **options: Any) -> Any:
        """As the network's."""
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
            self._decided = True  # As it was trained it is the fastest.
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
        if tuned is None:  # There may be no time for a search.
            tuned = tuner.first(self._device, self._precision, inplace=not self._keep)
        self._model, self.form = tuned, tuned.form

    def _example(self, images: Any) -> Tensor | None:
        """Return what to measure on, as many images as come at a time; None if sizes change."""
        if not isinstance(images, Tensor) or not len(images):
            return None
        self._sizes.add(tuple(images.shape[1:]))
        self._most = max(self._most, len(images))
        if len(self._sizes) > 1:
            return None
        num = min(self._most, NUM_EXAMPLES) if self._device.type == "cpu" else self._most
        # Unreadable images are missing from this batch, not from the next.
        return images[torch.arange(num, device=images.device) % len(images)]


def seconds_left(seconds: float, done: int, total: int) -> float | None:
    """Return the work ahead, from the seconds that `done` of `total` images took; None at first."""
    return None if done == 0 or seconds == 0 else seconds * (total - done) / done


def choose(
    left: float | None, *, gain: float, build_seconds: float, is_known: bool, can_search: bool
) -> Choice:
    """Return what to do with a network that has `left` seconds of work ahead as trained.

    Args:
        left: None if nothing is done yet.
        gain: Seconds that a form found before would save.
        build_seconds: What building it took.
        is_known: Whether there is one.
        can_search: Whether the network is called with batches of one shape.
    """
    if left is None:
        return "wait"
    if left < WORTH_FOLDING_S:
        return "stay"
    if is_known:
        return "known" if gain > build_seconds else "fold"
    return "search" if can_search and left > WORTH_SEARCHING_S else "fold"
