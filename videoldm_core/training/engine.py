"""The engines that take a step: plain torch, and DeepSpeed ZeRO, which no other file knows.

`Engine` has DeepSpeed's own names, so its engine needs no adapter and TorchEngine is the stand-in
for one process. What trains is float32 in both: "bf16" means autocast around the forward pass.

Gradients are accumulated as DeepSpeed counts (gradient_accumulation_steps): `backward` and `step`
are called for every micro batch, and the last one's `step` takes the step. Its own count is right
under every ZeRO stage: 0 and 1 reduce once, at the last; 2 and 3 keep a share of the gradients
alone, and so reduce each micro batch and add. An engine that is made anew, on resuming, starts
counting at a step's first micro batch, for checkpoints lie between steps.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from videoldm_core.errors import UserError
from videoldm_core.system.command import RENDEZVOUS
from videoldm_core.training.optimizer import OptimizerConfig, adamw
from videoldm_core.training.partitions import is_first_process, local_part

MOMENTS = ("exp_avg", "exp_avg_sq")
LARGEST_BUCKET = 50_000_000  # values per collective call


class Engine(Protocol):
    """A module with its optimizer; DeepSpeed's engine is one."""

    module: Any
    optimizer: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def backward(self, loss: Tensor) -> Any: ...

    def step(self) -> Any: ...

    def was_step_applied(self) -> bool: ...

    def compile(self, backend: str = ..., compile_kwargs: dict[str, Any] = ...) -> None: ...


class TorchEngine:
    """One process, no sharding.

    Args:
        accumulate: micro batches per step.
    """

    def __init__(
        self,
        module: nn.Module,
        trainable: list[nn.Parameter],
        config: OptimizerConfig,
        bf16: bool,
        accumulate: int = 1,
    ) -> None:
        self.module, self.optimizer = module, adamw(trainable, config)
        self._trainable, self._clip, self._bf16 = trainable, config.clip_norm, bf16
        self._accumulate, self._micro_steps = accumulate, 0
        self._applied = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        device = self._trainable[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Adds a micro batch's share of the gradients of the mean loss."""
        (loss / self._accumulate).backward()

    def step(self) -> None:
        """After the last micro batch of a step: clips, steps and clears the gradients.

        Gradients that are not finite are no step: weights and moments stay as they are.
        """
        self._micro_steps += 1
        self._applied = False
        if self._micro_steps % self._accumulate:
            return
        norm = nn.utils.clip_grad_norm_(self._trainable, self._clip)
        self._applied = bool(norm.isfinite())
        if self._applied:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def was_step_applied(self) -> bool:
        """Whether the last `step` moved the weights."""
        return self._applied

    def compile(
        self, backend: str = "inductor", compile_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Compiles the module in place, so that its weights keep their names."""
        self.module.compile(backend=backend, **(compile_kwargs or {}))


def deepspeed_engine(  # noqa: PLR0913 - DeepSpeed's settings, by name
    module: nn.Module,
    trainable: list[nn.Parameter],
    config: OptimizerConfig,
    *,
    zero_stage: int,
    micro_batch: int,
    accumulate: int,
    bf16: bool,
) -> Engine:
    """A DeepSpeed engine over the process group that `join_processes` set up."""
    import deepspeed

    # Even, for DeepSpeed aligns partitions by two values.
    bucket = min(2 * sum(p.numel() for p in trainable), LARGEST_BUCKET)
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.clip_norm,
        "steps_per_print": 2**31 - 1,
        # Buffers are as large as a bucket: by default 2 GB each, for a model of any size.
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
        # No module is listed as safe, so that gradients are still reduced in float32.
        "torch_autocast": {
            "enabled": bf16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=adamw(trainable, config), config=settings
    )
    return engine


def join_processes() -> None:
    """Joins the process group that the launcher describes in the environment.

    Where processes meet is the launcher's: by default each would listen on all interfaces for it.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Without this DeepSpeed compiles a C++ extension at the first start on a CPU, if it finds a
    # compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        init_method=os.environ[RENDEZVOUS],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def leave_processes(exit_code: int) -> NoReturn:
    """Ends this process at once, without the libraries' own clearing up.

    A test's process was once aborted with "terminate called without an active exception", which was
    not reproduced. Should a destructor at exit do that, a published stage would count as crashed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def set_learning_rate(engine: Engine, lr: float) -> None:
    """Sets the rate of the steps to come."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def took_step(engine: Engine, parameters: dict[str, nn.Parameter]) -> bool:
    """Whether the last step moved the weights, and they are finite still.

    ZeRO-1 to 3 leave out a step of gradients that are not finite; ZeRO-0 takes it.
    """
    # ZeRO-3's partitions end in padding that holds anything.
    whole = [p.data for p in parameters.values() if not hasattr(p, "ds_tensor")]
    finite = not whole or bool(torch.stack(torch._foreach_norm(whole)).isfinite().all())
    return engine.was_step_applied() and finite


# State that does not depend on how it was sharded ------------------------------------------------
#
# By parameter name. DeepSpeed's own checkpoint holds flat partitions of one number of processes and
# one ZeRO stage, and by default the frozen weights too.


def full_tensors(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Every parameter whole, on the CPU of the first process, and nothing on the others.

    A collective call under ZeRO-3. Parameters are gathered one at a time: all of them whole, in
    every process, would take as many times a model's size as a node has accelerators.
    """
    kept = {}
    for name, parameter in parameters.items():
        with _gathered([parameter]):
            if is_first_process():
                kept[name] = parameter.detach().to("cpu", copy=True)
    return kept


def full_moments(engine: Engine, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Adam's moments of every parameter, whole, keyed "exp_avg/<name>"; a collective call.

    Kept as `full_tensors` are.
    """
    moments = {}
    for parameter in parameters.values():
        # ZeRO-3 answers for these alone; another player may have the turn.
        parameter.requires_grad_(True)
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            full = _full_moment(engine, parameter, moment)
            if is_first_process():
                moments[f"{moment}/{name}"] = full.detach().to("cpu", copy=True)
    return moments


def restore_moments(
    engine: Engine, parameters: dict[str, nn.Parameter], moments: dict[str, Tensor], steps: int
) -> None:
    """Puts `full_moments` of a run after `steps` steps into a new engine, however it is sharded."""
    inner = _inner_optimizer(engine)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    # ZeRO-3 puts its flat partitions into the inner optimizer one at a time, while it steps.
    held = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    for parameter in held or [p for group in inner.param_groups for p in group["params"]]:
        inner.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
        }
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            key = f"{moment}/{name}"
            if key not in moments:
                raise UserError(f"The checkpoint lacks {key!r}; delete it and run again.")
            _set_full_moment(engine, parameter, moment, moments[key].to(parameter.device))


def _full_moment(engine: Engine, parameter: nn.Parameter, moment: str) -> Tensor:
    if not _is_sharded(parameter):
        state = _inner_optimizer(engine).state[parameter]
        # Plain torch keeps no moments of a parameter that no gradient has reached; they are zero.
        return state[moment] if moment in state else torch.zeros_like(parameter)
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, moment)


def _set_full_moment(engine: Engine, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    if not _is_sharded(parameter):
        _inner_optimizer(engine).state[parameter][moment].copy_(value)
        return
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if hasattr(parameter, "ds_id"):
        # DeepSpeed's own full setter does not pad a tensor that the processes cannot share evenly.
        safe_set_local_optimizer_state(parameter, local_part(parameter, value), moment)
        return
    safe_set_full_optimizer_state(parameter, value, moment)


def _inner_optimizer(engine: Engine) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
