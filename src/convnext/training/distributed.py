"""Devices and processes through Fabric: one device, DDP on one or more machines, or FSDP.

Torchrun, SLURM's srun or, with `--run.devices N`, the run itself starts the processes. The batch
size of a step is that of the recipe, regardless of the number of processes.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor, distribute_tensor

from convnext.hardware.devices import Ranks
from convnext.hardware.system import available_cores
from convnext.models.blocks import Block
from convnext.models.execution import set_recomputed
from convnext.recipes.schema import RunRecipe
from convnext.training.processes import other_processes, say_ready

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "OMP_NUM_THREADS",
)
"""What tells the processes of a run apart."""
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class LeavableBf16(MixedPrecision):  # type: ignore[misc]
    """bf16 that a run can still replace with fp32 after it has checked its network."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)
        self.left = False

    def forward_context(self) -> Any:
        """Return autocast, or a null context after `leave_bf16`."""
        return nullcontext() if self.left else super().forward_context()

    def convert_input(self, data: Any) -> Any:
        """Return the input of a network, in bf16 or unchanged."""
        return data if self.left else super().convert_input(data)


def make_fabric(run: RunRecipe, device: torch.device, precision: str) -> Fabric:
    """Return Fabric for a resolved precision, not launched yet.

    Raises:
        ValueError: If the requested devices do not exist, or differ from what the launcher started.
    """
    devices, nodes = count_devices(run, device)
    count = devices * nodes
    have = int(os.environ.get("WORLD_SIZE", count))
    if count > 1 and have != count and started_by_launcher() is None:
        raise ValueError(
            f"this script already runs in {have} processes; train on {have} devices, not {count}"
        )
    if run.strategy == "fsdp" and count == 1:
        raise ValueError("fsdp shards a network over several devices; give --run.devices 2 or more")
    # Fabric logs every process as a warning.
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    plugins: list[Any] = []
    if count > 1 and started_by_launcher() is None:
        plugins.append(LightningEnvironment())  # Instead of SLURM's, in the shell of a job.
    if precision == "fp16":
        plugins.append(MixedPrecision("16-mixed", device.type, torch.amp.GradScaler(device.type)))
    if precision == "bf16":
        plugins.append(LeavableBf16(device.type))
        precision = ""  # The plugin sets it.
    one = [device.index] if device.index is not None else 1
    return Fabric(
        accelerator=device.type,
        devices=devices if count > 1 else one,
        num_nodes=nodes,
        strategy=_strategy(run, count),
        precision=PRECISIONS.get(precision),
        plugins=plugins,
    )


@contextmanager
def launched(fabric: Fabric, job: Callable[[], object]) -> Iterator[None]:
    """Connect the processes of a run, and disconnect them after the block.

    Unless a launcher has started them, the first process starts the others, which call `job`: the
    run once more, up to here and then on.

    Raises:
        ValueError: If this process is already connected, or the job cannot be pickled.
        LostProcessError: If another process died.
        Exception: The error of another process that failed first.
    """
    if fabric.world_size == 1 or started_by_launcher() is not None:
        if "TORCHELASTIC_RESTART_COUNT" in os.environ:
            _join_attempt(fabric)
        fabric.launch()
        yield
        return
    if torch.distributed.is_initialized():
        raise ValueError(
            "torch.distributed is already initialized in this process; train on one device, or "
            "start the processes with torchrun"
        )
    count = fabric.world_size
    if "LOCAL_RANK" in os.environ:
        env = os.environ
        store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, False)
        say_ready(store)
        with _connected(fabric, store, int(env["LOCAL_RANK"])):
            yield
        return
    with other_processes(count, job) as store, _connected(fabric, store, 0):
        yield


@contextmanager
def _connected(fabric: Fabric, store: Store, rank: int) -> Iterator[None]:
    hook = sys.excepthook
    _connect(fabric, store, rank)
    sys.excepthook = hook  # torch's would mark the tracebacks of the user's process for good.
    try:
        fabric.launch()
        yield
    finally:
        if torch.distributed.is_initialized():  # Else it was aborted.
            torch.distributed.destroy_process_group()


def _join_attempt(fabric: Fabric) -> None:
    """Connect the processes that torchrun started, through keys that only this attempt reads.

    The store belongs to torchrun's agent and outlives a failed attempt. torch uses the same keys in
    each, so that a restarted process would find the address of a dead one. If the first process
    holds the store, it is new in every attempt, and Fabric connects the processes.
    """
    env = os.environ
    serves = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not serves or fabric.world_size == 1 or torch.distributed.is_initialized():
        return
    count, attempt = fabric.world_size, env["TORCHELASTIC_RESTART_COUNT"]
    timeout = torch.distributed.constants.default_pg_timeout
    agent = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), count, False, timeout)
    _connect(fabric, PrefixStore(f"attempt_{attempt}_of_{count}", agent), fabric.global_rank)


def _connect(fabric: Fabric, store: Store, rank: int) -> None:
    """Connect this process with the others through a store, instead of letting Fabric do it."""
    device = fabric.device
    fabric.strategy.accelerator.setup_device(device)
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=store,
        rank=rank,
        world_size=fabric.world_size,
        timeout=torch.distributed.constants.default_pg_timeout,
        device_id=None if device.type == "cpu" else device,
    )


def _strategy(run: RunRecipe, count: int) -> Any:
    """Return the strategy; without Fabric's launcher, which would run the script once more."""
    if count == 1:
        return "auto"
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    base = ModelParallelStrategy if run.strategy == "fsdp" else DDPStrategy

    class Strategy(base):  # type: ignore[misc, valid-type]
        def _configure_launcher(self) -> None:
            if started_by_launcher() is not None:
                super()._configure_launcher()

    if run.strategy == "fsdp":
        return Strategy(_shard, data_parallel_size=count, tensor_parallel_size=1)
    return Strategy(gradient_as_bucket_view=True)


def set_threads(run: RunRecipe, device: torch.device, *, before: int | None = None) -> None:
    """Set the CPU threads of this process, and of the processes that it starts.

    Args:
        run: Its `threads` may be `auto`; that of the user's environment then counts.
        device: The device of the run.
        before: The number of a run that resumes, which stays if the environment names none.
    """
    asked = run.threads
    if asked == "auto":
        if "OMP_NUM_THREADS" in os.environ:
            return
        # torch counts the cores of the machine, which may be more than a container has.
        cores = min(torch.get_num_threads(), available_cores())
        asked = before or max(1, cores // count_devices(run, device)[0])
    torch.set_num_threads(asked)
    os.environ["OMP_NUM_THREADS"] = str(asked)


def count_devices(run: RunRecipe, device: torch.device) -> tuple[int, int]:
    """Return devices per machine and machines, from the launcher or else from the recipe."""
    started = started_by_launcher()
    if started is None:
        devices = 1 if run.devices == "auto" else run.devices
        have = torch.cuda.device_count() if device.type == "cuda" else devices
        if devices > have:
            raise ValueError(f"run.devices is {devices}, but this machine has {have}")
        if run.num_nodes > 1:
            raise ValueError(
                f"run.num_nodes is {run.num_nodes}, but only this machine was started; start every "
                "machine by torchrun or srun (docs/scaling.md has the commands)"
            )
        return devices, 1
    devices, nodes, by = started
    if run.devices not in ("auto", devices) or run.num_nodes not in (1, nodes):
        raise ValueError(
            f"{by} started {devices} processes on each of {nodes} machines, but the recipe asks "
            f"for run.devices {run.devices} and run.num_nodes {run.num_nodes}; leave both out"
        )
    return devices, nodes


def started_by_launcher() -> tuple[int, int, str] | None:
    """Return processes per machine, machines and the launcher's name; None if there was none."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env and "WORLD_SIZE" in env:
        local, world = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
        return local, world // local, "torchrun"
    # SLURM_NTASKS is also set in the shell of a job, before srun has started anything.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1:
        nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
        if tasks % nodes:
            raise ValueError(
                f"srun started {tasks} processes on {nodes} machines; give `--ntasks-per-node`, so "
                "that every machine has the same number"
            )
        return tasks // nodes, nodes, "srun"
    return None


def is_first_process() -> bool:
    """Tell whether this is the first process of a run, before Fabric is launched in it."""
    started = started_by_launcher()
    name = (
        "LOCAL_RANK" if started is None else "RANK" if started[2] == "torchrun" else "SLURM_PROCID"
    )
    return int(os.environ.get(name, 0)) == 0


def leave_bf16(fabric: Fabric) -> None:
    """Compute in fp32 from now on. Call it before the loop sets up its network."""
    plugin = fabric.strategy.precision
    assert isinstance(plugin, LeavableBf16)
    plugin.left = True


def ranks_of(fabric: Fabric) -> Ranks:
    """Return the rank of this process among the launched ones."""
    return Ranks(fabric.global_rank, fabric.world_size)


def scaler_of(fabric: Fabric) -> torch.amp.GradScaler | None:
    """Return the loss scaling of fp16, None in other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)


def synchronize_batch_norm(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Synchronize batch norm over all processes, except on a CPU, where torch cannot."""
    if ranks.count > 1 and device.type == "cuda":
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return shared
    return model


def checkpoint_activations(model: nn.Module) -> bool:
    """Recompute the activations of every block in the backward pass; return whether it could."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    set_recomputed(blocks)
    switch = getattr(getattr(model, "network", None), "set_grad_checkpointing", None)
    if not blocks and switch is not None:
        switch()  # A timm model.
        return True
    return bool(blocks)


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Shard every block, and the rest of the network, over the processes (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    mesh = mesh["data_parallel"]
    model = model.to(memory_format=torch.contiguous_format)  # FSDP2 shards only contiguous tensors.
    for part in _large_parts(model):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _large_parts(model: nn.Module) -> list[nn.Module]:
    ours: list[nn.Module] = [module for module in model.modules() if isinstance(module, Block)]
    if ours:
        return ours
    # The repeated parts of a timm model are the children of its `stages`, `blocks` and so on.
    sequences = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    inner = {
        id(child) for s in sequences for m in s.modules() if m is not s for child in m.modules()
    }
    return [
        m for s in sequences for m in s.children() if id(m) not in inner and any(m.parameters())
    ]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of one that may be sharded; every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into one that may be sharded."""
    with torch.no_grad():
        target.copy_(distribute_like(target, value))


def distribute_like(target: Tensor, value: Tensor) -> Tensor:
    """Return a full tensor distributed like `target`: on its device, and sharded if it is."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def seed_everything(*numbers: int) -> None:
    """Seed torch, numpy and Python from a few numbers, such as a seed, a step and a part."""
    state = np.random.SeedSequence(numbers).generate_state(1)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[0]))
    random.seed(int(state[0]))


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Restore the state of the process after the block, which may seed and configure it.

    This covers the random state of Python, numpy and torch, the number of threads, the settings of
    deterministic runs, and the variables that tell the processes of a run apart.
    """
    variables = {name: os.environ.get(name) for name in (_CUBLAS, *_VARIABLES)}
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_deterministic() -> None:
    """Make a GPU compute the same bits every time, at some cost in speed."""
    os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
