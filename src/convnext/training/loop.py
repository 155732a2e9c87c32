"""The training loop of all tasks. It counts steps and does not depend on a task.

Periodic work runs in order before each step: check the losses, evaluate, save, leave. The loop has
one extra iteration, so that the end needs no second code path. After a recoverable fault (a data
loader process died, memory ran out, a loss is not finite) the run returns to its last saved state
and repeats the same steps. The file is long because these paragraphs share the state of one loop.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from shlex import quote
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from convnext.hardware.devices import peak_memory_gb
from convnext.hardware.peak_rates import mfu, peak_matmul_flops
from convnext.hardware.system import StopSignals
from convnext.models.execution import set_fused, widens
from convnext.recipes.resolve import LOG_EVERY, Plan
from convnext.recipes.schema import ResolvedRecipe
from convnext.tasks.base import Task
from convnext.training import faults
from convnext.training.checkpointing import Learner, Saver, load_state
from convnext.training.checks import (
    SlowSteps,
    another_length,
    check_same_run,
    diverged,
    fixed_settings,
    read_reference,
    slow_steps_text,
    smaller_micro_batch,
)
from convnext.training.distributed import (
    full_tensor,
    ranks_of,
    scaler_of,
    seed_everything,
    synchronize_batch_norm,
)
from convnext.training.faults import DivergedError, Heartbeat, InterruptedRun
from convnext.training.freezing import Frozen
from convnext.training.log import RunLog
from convnext.training.optim import (
    FROZEN,
    Ema,
    UpdateNorm,
    l2_norm,
    make_optimizer,
    set_learning_rate,
)
from convnext.training.trackers import Callback, EvaluationEnd, StepEnd
from convnext.weights.checkpoint import complete_steps

# After more faults than this, rolling back does not help.
MAX_FAULTS = 20
# How often processes agree on leaving: schedulers give half a minute before they kill.
AGREE_SECONDS = 5.0
ROLLBACK_FACTOR = 0.5
# Attempts to restore a state when there is too little memory for it.
RESTORE_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    best: Mapping[str, Any]
    """The metrics of the best weights, with `step` and `weights` ("model" or "ema")."""
    steps: int
    seconds: float
    """Time spent in this process, evaluation included."""
    micro_batch_size: int
    """Images per backward pass on one device at the end: halved whenever memory ran out."""
    stopped_early: bool


def fit(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    *,
    fabric: Fabric,
    log: RunLog,
    micro_batch_size: int | None = None,
    resume: bool = False,
    macs: int | None = None,
    begun: Callable[[], None] = lambda: None,
    callbacks: Sequence[Callback] = (),
    stop: StopSignals | None = None,
) -> Outcome:
    """Train `model` on `task` by the resolved `recipe`, and write into the run folder of `log`.

    Every process of a launched `fabric` calls it. `micro_batch_size` is that of the recipe, or a
    smaller one that is known to fit. `macs` of one image are needed to log the model FLOPs
    utilization. `begun` is called once the run is known to be able to start or resume, before
    anything is written. `stop` are the signals that the caller catches.

    Raises:
        DivergedError: If a loss or a weight is not finite; the last good checkpoint is kept.
        InterruptedRun: If a signal asked the run to end; its state is saved.
        LostProcessError: If another process of the run is lost.
        ValueError: If the state to resume from cannot be read, or belongs to another run.
        OSError: If the last state could not be saved.
    """
    started = time.perf_counter()
    with (
        nullcontext(stop) if stop else StopSignals() as stop,
        Heartbeat(ranks_of(fabric)) as heartbeat,
    ):
        trainer = _Trainer(
            task,
            model,
            recipe,
            fabric=fabric,
            log=log,
            stop=stop,
            macs=macs,
            micro_batch_size=micro_batch_size,
            callbacks=callbacks,
        )
        try:
            trainer.begin(resume=resume, begun=begun)
            while (fault := trainer.train()) is not None:
                trainer.roll_back(fault)
        except RuntimeError as error:
            if trainer.ranks.count > 1 and faults.is_lost_process(error):
                raise heartbeat.lost(error) from error
            raise
        finally:
            log.stop()
            set_fused(model, fused=False)
    outcome = Outcome(
        best=trainer.best,
        steps=trainer.step,
        seconds=time.perf_counter() - started,
        micro_batch_size=trainer.micro_batch_size,
        stopped_early=trainer.stopped_early,
    )
    for callback in trainer.callbacks:
        callback.on_end(outcome)
    return outcome


class _Trainer:
    """The state of `fit`."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        recipe: ResolvedRecipe,
        *,
        fabric: Fabric,
        log: RunLog,
        stop: StopSignals,
        macs: int | None,
        micro_batch_size: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.recipe, self.fabric, self.log, self.stop = task, recipe, fabric, log, stop
        self.ranks = ranks_of(fabric)
        self.callbacks = tuple(callbacks) if self.ranks.is_first else ()
        self.micro_batch_size = micro_batch_size or recipe.optim.micro_batch_size
        self.memory_format = (
            torch.channels_last if recipe.run.channels_last else torch.contiguous_format
        )
        model = model.to(fabric.device)
        if recipe.run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model = synchronize_batch_norm(model, self.ranks, fabric.device)
        self.frozen = Frozen(model, recipe.optim.freeze)
        self.frozen.hold()
        self.is_frozen = bool(self.frozen.names)
        run = recipe.run
        # Compilers fuse blocks themselves, and GPUs use other kernels.
        fused = run.fused and fabric.device.type == "cpu" and run.compile is not True
        widened = self.ranks.broadcast_object(
            fused and widens(run.precision, deterministic=run.deterministic)
        )
        set_fused(model, fused=fused, widened=widened)
        self.runner = torch.compile(model) if recipe.run.compile is True else model
        self.model, self.trained = model, fabric.setup_module(self.runner)
        raw_optimizer = make_optimizer(model, recipe.optim, self.frozen.names)
        self.optimizer = fabric.setup_optimizers(raw_optimizer)
        decay = recipe.ema.decay
        self.learner = Learner(
            model, raw_optimizer, Ema(model, decay) if decay else None, scaler_of(fabric)
        )
        self.saver = Saver(log.folder / "checkpoints", self.learner, log=log, ranks=self.ranks)

        self.plan = Plan.of(recipe, task.steps_per_epoch)
        unfreeze_at = recipe.optim.unfreeze_at
        self.unfreeze_step = max(1, round(unfreeze_at * task.steps_per_epoch)) if unfreeze_at else 0
        self.reference = read_reference(
            recipe.run.reference, task.primary, recipe.run.reference_tolerance
        )
        self.macs = macs
        products = "fp32" if widened else run.precision
        self.limit = peak_matmul_flops(fabric.device, products) if macs else None

        self.step = self.first_step = self.since_best = 0
        self.best: dict[str, Any] = {}
        self.rate, self.rate_factor = 0.0, 1.0
        self.stopped_early = False
        self.losses: list[dict[str, float]] = []  # Since the last logged row.
        self.pending: list[Tensor] = []  # Not read from the device yet.
        self.names: tuple[str, ...] = ()
        self.norms: dict[str, Tensor] = {}
        self.has_evaluated = self.evaluation_due = False
        self.num_faults = 0
        self.failed_at: list[int] = []
        self.agree_at = 0
        self.step_began = time.perf_counter()
        self.step_seconds = 0.0
        self.slow_steps, self.phase = SlowSteps(), 0
        self.phase_starts = [phase.start for phase in task.phases(self.plan.num_steps)]

    def begin(self, *, resume: bool, begun: Callable[[], None]) -> None:
        """Start at step 0, or at the last complete state of the run folder."""
        if self.ranks.broadcast_object(resume and bool(complete_steps(self.saver.folder))):
            counters = self._restore()
            check_same_run(counters, self.task, self.recipe, self.log.folder)
            if counters["num_steps"] != self.plan.num_steps:
                text = another_length(self.plan, self.step, counters["num_steps"])
                self.log.warn(text, step=self.step)
            self.stopped_early = 0 < self.recipe.run.patience <= self.since_best
        begun()
        if not self.saver.tidy(self.best):
            self.best = {}
        hint = self.saver.micro_batch_size()
        self.micro_batch_size = min(hint or self.micro_batch_size, self.micro_batch_size)
        self._begin_log()
        self.first_step = self.step
        self.saver.check_space()
        if self.step == 0:
            # This detects a read-only disk now, and every fault can roll back to it.
            self._save(must=True)

    def _begin_log(self) -> None:
        images = self.step * self.task.batch_size
        self.log.begin_at(
            self.step,
            images,
            self.task.steps_per_epoch,
            num_steps=self.plan.num_steps,
            evaluates=self.evaluation_due,
        )

    def train(self) -> Exception | None:
        """Train to the end; return a fault from which rolling back can recover."""
        self.log.start(
            num_steps=self.plan.num_steps,
            steps_per_epoch=self.task.steps_per_epoch,
            first_step=self.first_step,
        )
        try:
            self._train()
        except RuntimeError as error:
            is_recoverable = faults.is_out_of_memory(error) or (
                faults.is_lost_worker(error) and self.failed_at.count(self.step) < 2
            )
            if self.ranks.count > 1 and faults.is_out_of_memory(error):
                self.saver.keep_micro_batch_size(smaller_micro_batch(self.micro_batch_size))
            if not is_recoverable or self.ranks.count > 1 or self.num_faults >= MAX_FAULTS:
                raise
            # Drop the traceback, which keeps the memory of the failed step alive.
            return error.with_traceback(None)
        except DivergedError as error:
            if self.recipe.run.on_nan == "stop" or self.num_faults >= MAX_FAULTS:
                raise
            return error.with_traceback(None)
        return None

    def _train(self) -> None:
        batches = self.task.batches(
            self.step, self.micro_batch_size, lambda text: self.log.warn(text, step=self.step)
        )
        while True:
            is_last = self.step >= self.plan.num_steps
            is_new = self.step > self.first_step
            evaluates = (is_new or self.evaluation_due) and self.plan.evaluates_at(self.step)
            if self.losses or self.pending:
                self._check_losses(ends_window=evaluates or self.plan.logs_at(self.step))
            if evaluates:
                if not self.has_evaluated and self.saver.saved != self.step:
                    # Whatever the first evaluation lacks, no training is lost.
                    self.evaluation_due = True
                    self._save()
                self._evaluate()
                self.has_evaluated, self.evaluation_due = True, False
                self.stopped_early = 0 < self.recipe.run.patience <= self.since_best and not is_last
            ends = is_last or self.stopped_early
            if evaluates or (is_new and self.saver.is_due(self.step, self.plan.save_steps)):
                self._save(must=ends)
            if ends:
                return
            self._leave_if_requested()
            try:
                with self.log.waiting():
                    parts = next(batches)
            except RuntimeError:
                # The signal that asks this process to end also ended the processes of its loader.
                # In a run of several processes, the fault counts as a lost process.
                if self.ranks.count == 1:
                    self._leave_if_requested()
                raise
            self._step(parts)

    def _step(self, parts: Sequence[Any]) -> None:
        """Take one optimizer step on this process's micro batches."""
        task, fabric, optimizer = self.task, self.fabric, self.optimizer
        if self.is_frozen and 0 < self.unfreeze_step <= self.step:
            self._unfreeze()
        self.rate = self.rate_factor * self.plan.rate(self.step)
        set_learning_rate(self.learner.optimizer, self.rate)
        self.model.train()
        if self.is_frozen:
            self.frozen.eval()
        total: Tensor | None = None
        for p, part in enumerate(parts):
            # Every process has the same number of parts.
            number_of_part = self.ranks.rank * len(parts) + p
            # The seed of a part (stochastic depth, noise) depends on its position in the run.
            seed_everything(self.recipe.run.seed, self.step, number_of_part)
            with fabric.no_backward_sync(self.trained, enabled=p + 1 < len(parts)):
                losses = task.losses(
                    self.trained, part, self.step, number_of_part, self.memory_format
                )
                self.names = tuple(losses)
                # Gradients are averaged over processes, so each weighs its fraction of the batch.
                share = task.size(part) / task.batch_size * self.ranks.count
                shares = torch.stack(list(losses.values())) * share
                fabric.backward(shares.sum())
            total = shares.detach() if total is None else total + shares.detach()
        assert total is not None, "a step needs a micro batch"
        measures = self.plan.logs_at(self.step + 1) or self.plan.evaluates_at(self.step + 1)
        self._clip(measures=measures)
        update = UpdateNorm(self.model) if measures else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if update is not None:
            self.norms |= {"param_norm": l2_norm(self.model), "update_norm": update.compute()}
        if self.learner.ema is not None:
            self.learner.ema.update(self.model, self.step)
        self.pending.append(total)
        now = time.perf_counter()
        self.step_began, self.step_seconds = now, now - self.step_began
        self.log.stepped(self.step, task.batch_size)
        if self.callbacks:
            end = StepEnd(
                step=self.step,
                num_steps=self.plan.num_steps,
                epoch=self.step / task.steps_per_epoch,
                lr=self.rate,
                losses=dict(zip(self.names, total.unbind(), strict=True)),
                model=self.model,
            )
            for callback in self.callbacks:
                callback.on_step_end(end)

    def _unfreeze(self) -> None:
        """Train the frozen parts from this step on, with moments that start from zero."""
        groups = self.learner.optimizer.param_groups
        self.learner.forget_numbers([g for g in groups if g["name"].endswith(FROZEN)])
        self._hold(frozen=False)
        self.log.note("the frozen parts train from here on", step=self.step)

    def _hold(self, *, frozen: bool) -> None:
        """Freeze the parts that the recipe freezes, or let them train."""
        if frozen == self.is_frozen:
            return
        self.is_frozen = frozen
        self.frozen.hold(frozen=frozen)
        self.slow_steps.begin()  # A step that trains more takes longer.
        if self.ranks.count > 1:
            # DDP averages the gradients of the parameters that have one when it is set up.
            del self.trained
            gc.collect()
            self.trained = self.fabric.setup_module(self.runner)

    def _clip(self, *, measures: bool) -> None:
        """Clip the norm of the gradient if the recipe does, and measure it."""
        max_norm = self.recipe.optim.clip_grad
        if not max_norm and not measures:
            return
        scaler = self.learner.scaler
        if scaler is not None:
            scaler.unscale_(self.learner.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm or math.inf)
        if measures:
            self.norms["grad_norm"] = full_tensor(norm)

    def _check_losses(self, *, ends_window: bool) -> None:
        """Read the losses of the last steps from the device, check them, and log their means."""
        if not ends_window and not self.saver.is_due(self.step, self.plan.save_steps):
            return
        self._read_losses()
        if not ends_window:
            return
        means = {
            name: math.fsum(losses[name] for losses in self.losses) / len(self.losses)
            for name in self.names
        }
        # With fp16 loss scaling, the gradient of a skipped step has no finite norm.
        extra = {name: float(norm) for name, norm in self.norms.items() if torch.isfinite(norm)}
        extra["memory_gb"] = peak_memory_gb(self.fabric.device)
        if self.learner.scaler is not None:
            extra["loss_scale"] = self.learner.scaler.get_scale()
        speed = self.log.trained(
            self.step,
            loss=math.fsum(means.values()),
            lr=self.rate,
            losses=means if len(means) > 1 else {},
            extra=extra,
            groups={
                group["name"]: group["lr"]
                for group in self.learner.optimizer.param_groups
                if not (self.is_frozen and group["name"].endswith(FROZEN))
            },
            mfu=self._mfu,
        )
        self.losses.clear()
        self.norms.clear()
        self._check_speed(speed)

    def _check_speed(self, images_per_s: float) -> None:
        """Warn once if steps have taken twice as long for a minute."""
        phase = sum(start < self.step for start in self.phase_starts)
        if phase != self.phase:
            self.phase = phase
            self.slow_steps.begin()  # Larger images take longer.
        slower = self.slow_steps.update(images_per_s, time.perf_counter())
        if slower is not None:
            self.log.warn(slow_steps_text(slower, self.fabric.device), step=self.step)

    def _mfu(self, images_per_s: float) -> float | None:
        if self.macs is None or self.limit is None:
            return None
        return mfu(images_per_s / self.ranks.count, self.macs, self.limit)

    def _read_losses(self) -> None:
        """Read the pending losses, averaged over the processes.

        Raises:
            DivergedError: At the first loss that is not finite.
        """
        if not self.pending:
            return
        first = self.step - len(self.pending) + 1
        rows = self.ranks.mean(torch.stack(self.pending)).tolist()
        self.pending.clear()
        for step, row in enumerate(rows, first):
            if not all(map(math.isfinite, row)):
                raise self._diverged(f"the loss became {sum(row)} at step {step}")
            self.losses.append(dict(zip(self.names, row, strict=True)))

    def _evaluate(self) -> None:
        self._check_weights()
        improved, reached = False, []
        ema, primary = self.learner.ema, self.task.primary
        for weights in ("model", "ema") if ema else ("model",):
            with ema.applied_to(self.model) if ema and weights == "ema" else nullcontext():
                # Batch norms that are not synchronized differ between processes. The statistics of
                # the first process are saved, so evaluate with those.
                self.ranks.broadcast(b for b in self.model.buffers() if b.is_floating_point())
                metrics = self.log.evaluated(self.step, weights, self.task.validate(self.model))
                is_best = not self.best or metrics[primary] > self.best[primary]
                if is_best:
                    is_best = self.saver.save_best(self.task.card(self.model, metrics, self.recipe))
                if is_best:
                    self.best, improved = metrics, True
                reached.append(metrics[primary])
                self._report_evaluation(weights, metrics, is_best=is_best)
                if (partial := self.task.validate_in_phase(self.model, self.step)) is not None:
                    size, at_size = partial
                    self.log.evaluated(self.step, weights, at_size, image_size=size)
        if self.reference is not None:
            epoch = self.step / self.task.steps_per_epoch
            warning = self.reference.check(epoch, max(reached))
            if warning:
                self.log.warn(warning, step=self.step)
        self.since_best = 0 if improved else self.since_best + 1

    def _report_evaluation(self, weights: str, row: Mapping[str, Any], *, is_best: bool) -> None:
        metrics = {name: row[name] for name in row if name not in ("step", "weights")}
        end = EvaluationEnd(
            step=self.step,
            epoch=self.step / self.task.steps_per_epoch,
            weights=weights,
            metrics=metrics,
            is_best=is_best,
            model=self.model,
        )
        for callback in self.callbacks:
            callback.on_evaluation(end)

    def _save(self, *, must: bool = False) -> None:
        """Save the state of this step; with `must`, a failure raises instead of warning."""
        self._read_losses()
        self._check_weights()
        scaler = self.learner.scaler
        counters = {
            "best": self.best,
            "since_best": self.since_best,
            "evaluation_due": self.evaluation_due,
            "losses": self.losses,
            "rate_factor": self.rate_factor,
            "num_steps": self.plan.num_steps,
            "steps_per_epoch": self.task.steps_per_epoch,
            "batch_size": self.task.batch_size,
            "data": self.task.fingerprint,
            "fixed": fixed_settings(self.recipe),
            "scaler": scaler.state_dict() if scaler else {},
            "optimizer": self.learner.numbers(),
        }
        card = self.task.card(self.model, {"step": self.step, "weights": "model"}, self.recipe)
        with self.log.paused():
            self.saver.save(self.step, card, counters, must=must)

    def _leave_if_requested(self) -> None:
        """Save and raise InterruptedRun if asked to stop; all processes leave together."""
        reason = f"{self.stop.received} received" if self.stop.received else None
        if reason is None and self.log.is_closed:
            reason = "the reader of the output is gone"
        if self.ranks.count > 1:
            if self.step < self.agree_at:
                return
            gathered = self.ranks.gather((reason, self.step_seconds))
            reason = next((found for found, _ in gathered if found), None)
            slow = max(seconds for _, seconds in gathered) > AGREE_SECONDS / LOG_EVERY
            self.agree_at = self.step + (1 if slow else LOG_EVERY)
        if reason is None:
            return
        if self.saver.saved != self.step:
            self._save(must=True)
        raise InterruptedRun(
            f"{reason}: the run is saved at step {self.step:,} of "
            f"{self.plan.num_steps:,}; resume with: convnext train --resume --output "
            f"{quote(str(self.log.folder))}",
            should_print=self.ranks.is_first,
        )

    def _restore(self) -> dict[str, Any]:
        """Restore the newest complete state; return its counters."""
        counters = load_state(
            self.saver.folder,
            self.learner,
            ranks=self.ranks,
            warn=lambda text: self.log.warn(text, step=self.step),
        )
        self.step = self.saver.saved = counters["step"]
        # The state of the step at which they are unfrozen is from before that.
        self._hold(frozen=bool(self.frozen.names) and not 0 < self.unfreeze_step < self.step)
        self.best, self.since_best = counters["best"], counters["since_best"]
        self.evaluation_due = counters.get("evaluation_due", False)  # Not in states of 0.1.0.
        self.losses, self.rate_factor = counters["losses"], counters["rate_factor"]
        self.names = tuple(self.losses[0]) if self.losses else self.names
        self.pending.clear()
        self.norms.clear()
        return counters

    def _restore_in_little_memory(self) -> None:
        """Restore the newest state, although the memory of the failed step may still be taken."""
        for attempt in range(RESTORE_TRIES):
            try:
                self._restore()
            except RuntimeError as error:
                if not faults.is_out_of_memory(error) or attempt + 1 == RESTORE_TRIES:
                    raise
                error.with_traceback(None)
            else:
                return
            self.learner.optimizer.state.clear()  # The largest tensors that the state replaces.
            gc.collect()
            torch.cuda.empty_cache()
            time.sleep(attempt)  # Another process may free some.

    def roll_back(self, fault: Exception) -> None:
        """Fix the cause of a fault if possible, and return to the last saved state."""
        self.num_faults += 1
        what = " ".join(str(fault).split())
        self.log.stop()
        failed_at = self.step
        self.failed_at.append(failed_at)
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(fault, DivergedError):
            factor = self.rate_factor * ROLLBACK_FACTOR
            remedy = f"continuing at {factor:g} times the learning rate of the recipe"
        elif faults.is_out_of_memory(fault):
            self.micro_batch_size = smaller_micro_batch(self.micro_batch_size)
            self.saver.keep_micro_batch_size(self.micro_batch_size)
            torch.cuda.empty_cache()
            remedy = (
                f"micro_batch_size is {self.micro_batch_size} from now on, the batch stays "
                f"{self.task.batch_size:,}"
            )
        else:
            remedy = "the processes of the data loader are started anew"
        best = self.best
        self._restore_in_little_memory()
        if isinstance(fault, DivergedError):
            self.rate_factor = factor
            # The best weights stay on disk; the abandoned attempt may have produced them.
            self.best = best
        self.first_step = self.step
        self._begin_log()
        self.log.warn(
            f"step {failed_at:,} failed ({what[:300]}); {remedy}; back at step {self.step:,}",
            step=self.step,
        )

    def _check_weights(self) -> None:
        """Stop before weights that are not finite are evaluated or saved.

        The loss of a step precedes its update, so finite losses do not prove finite weights.
        """
        states = self.learner.optimizer.state.values()
        moments = (t for state in states for t in state.values() if isinstance(t, Tensor))
        average = self.learner.ema.tensors.values() if self.learner.ema else ()
        tensors = (*self.model.state_dict().values(), *moments, *average)
        largest = [
            full_tensor(t.detach().abs().max()).float() for t in tensors if t.is_floating_point()
        ]
        device = self.fabric.device
        if not torch.isfinite(torch.stack([t.to(device) for t in largest])).all():
            raise self._diverged(
                f"a weight, or a moment of the optimizer, is not finite after step {self.step}"
            )

    def _diverged(self, what: str) -> DivergedError:
        return diverged(what, self.recipe, rate=self.rate, checkpoints=self.saver.folder)
