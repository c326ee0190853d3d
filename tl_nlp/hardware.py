"""What this machine can do: devices, number formats, memory."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tl_nlp.attention import BLOCKS
from tl_nlp.errors import HardwareError
from tl_nlp.families import without_peft
from tl_nlp.types import PassBudget


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which models compute under `training.precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_half(precision, device))


@contextmanager
def inferring(model: Any, precision: str) -> Iterator[torch.device]:
    """Within the block the model answers and does not learn; gives the device it is on.

    On a CPU attention goes by blocks, where the family lets it be chosen: see `attention`.
    """
    device = next(model.parameters()).device
    plain = without_peft(model)
    is_compiled = plain.base_model._compiled_call_impl is not None  # for steps, whose widths are others
    is_slow = plain.config._attn_implementation == "eager" and plain._supports_sdpa
    model.eval()
    if is_slow:
        plain.set_attn_implementation(BLOCKS)
    try:
        with (
            torch.compiler.set_stance("force_eager") if is_compiled else nullcontext(),
            torch.inference_mode(),
            autocast(precision, device),
        ):
            yield device
    finally:
        if is_slow:
            plain.set_attn_implementation("eager")


def pass_budget(model: Any) -> PassBudget:
    """What a model reads in one pass of inference: on a CPU as much as its caches hold the states of, of MiniLM; less
    where weights are int8, whose products there have eight copies of a layer's states for a moment. On a GPU so much
    that the host keeps up, and half a gigabyte of MiniLM's states (docs/lab.md)."""
    if next(model.parameters()).device.type == "cuda":
        return PassBudget(32768, beside=8192)
    return PassBudget(512 if any(weight.dtype == torch.int8 for weight in model.parameters()) else 2048)


def most_scores(model: Any) -> float:
    """How many attention scores a layer may keep of one pass of training: on a CPU, where it keeps them at all, as many
    as are well below 32 MB in float32, which saves memory anywhere. Larger pieces glibc asks of the system each time,
    which clears them (docs/lab.md). An eighth of that where weights are in int8 or nf4, which who has little memory
    loads them in, and which is then a tenth slower."""
    is_kept = without_peft(model).config._attn_implementation == "eager"
    if not is_kept or next(model.parameters()).device.type != "cpu":
        return math.inf
    is_quantized = any(not weight.is_floating_point() for weight in model.parameters())
    return _MOST_SCORES // 8 if is_quantized else _MOST_SCORES


_MOST_SCORES = 6 << 20  # 25 MB


def release() -> None:
    """Memory that nothing holds any more goes back to the system, where the C library can be asked for it."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def old_objects_aside() -> Iterator[None]:
    """Within the block the garbage collector passes over all that was there before: hundreds of thousands of objects of
    imported modules, which take it a third of a second each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # the next block would pass over what this one leaves, a model among it
        gc.unfreeze()


def on_host(numbers: Tensor) -> Callable[[], list[float]]:
    """How to get a tensor's numbers once its device has them. A GPU sends them as soon as it does, so who asks waits
    for nothing that the GPU is told from here on."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    copy = numbers.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def is_half(precision: str, device: torch.device) -> bool:
    """Whether models compute in bfloat16 under `training.precision` on this device."""
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Within the block so many threads of a CPU are used; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What it is called: the GPU's name; the CPU's, with what it has for tensors and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    parts = [_processor(), torch.backends.cpu.get_cpu_capability()]
    parts += ["bfloat16"] if has_fast_bfloat16(device) else []
    parts += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    return ", ".join([*parts, f"threads: {torch.get_num_threads()}"])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "CPU"


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take on this device, within the limit of its container where there is one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("file", "0")
        free = min(free, int(limit) - used + int(cached))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of torch tells: on a CPU it has no class of its own."""
    told = ("can't allocate memory", "not enough memory", "could not create a memory", "std::bad_alloc")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in told)


_Row = TypeVar("_Row")
_Computed = TypeVar("_Computed")


def in_passes(rows: list[_Row], compute: Callable[[list[_Row]], _Computed]) -> list[_Computed]:
    """What is computed of rows, in their order: at once, or of half as many at a time wherever memory is too small.

    Raises HardwareError where it is for one row.
    """
    try:
        return [compute(rows)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if len(rows) == 1:
        raise HardwareError(
            "out of memory with one text alone in a pass; a lower task.max_length takes less, or a shorter text"
        )
    half = len(rows) // 2
    return in_passes(rows[:half], compute) + in_passes(rows[half:], compute)


class EnergyMeter:
    """The energy that the processors' own counters (RAPL, through Linux's powercap) have counted; no GPU is in it."""

    def __init__(self, folder: Path = Path("/sys/class/powercap")):
        self._ranges = {}
        for package in folder.glob("intel-rapl:[0-9]*"):
            if package.name.count(":") == 1:  # parts of a package are in its sum
                with suppress(OSError, ValueError):
                    self._ranges[package] = int((package / "max_energy_range_uj").read_text())
        self._last = self._read()

    def joules(self) -> float | None:
        """Since the last call, which must be less than a round of the counters ago; None where there are none."""
        now = self._read()
        spent = [(now[one] - self._last[one]) % self._ranges[one] for one in now if one in self._last]
        self._last = now
        return sum(spent) / 1e6 if spent else None

    def _read(self) -> dict[Path, int]:
        found = {}
        for package in self._ranges:
            with suppress(OSError, ValueError):  # most systems let root alone read it
                found[package] = int((package / "energy_uj").read_text())
        return found
