"""The results of bench_gpu.py, how they are timed and printed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Bench:
    """The settings and results of the measurements.

    Attributes:
        count: number of particles for a kernel.
        steps: numbers of particles for runs.
        found: all results, as they are written to the file.
    """

    def __init__(self, device: str, quick: bool, minutes: float, count: int | None, steps: list[int] | None):
        self.device, self.quick = torch.device(device), quick
        self.deadline = time.monotonic() + 60 * minutes
        self.count = count or (2**12 if device == "cpu" else 2**18 if quick else 10**7)
        self.steps = (
            steps if steps is not None else [2**12] if device == "cpu" else [2**16] if quick else [2**20, 2**23]
        )
        self.found: dict[str, Any] = {"machine": {}, "rows": [], "targets": [], "failures": {}, "left_out": []}
        self._matmul: float | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def row(self, table: str, name: str, **numbers: Any) -> None:
        """Add and print one line of a table."""
        self.found["rows"].append({"table": table, "name": name, **numbers})
        text = [f"{number:.4g}" if isinstance(number, float) else str(number) for number in numbers.values()]
        print(f"{name}, {', '.join(text)}", flush=True)

    def target(self, name: str, value: float, wanted: float, met: bool) -> None:
        self.found["targets"].append({"name": name, "value": value, "wanted": wanted, "met": met})
        print(f"# target: {name}: {value:.4g}, wanted {wanted:.4g}: {'met' if met else 'missed'}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], rounds: int = 7) -> float:
        """The median time of several calls, after two calls that compile and allocate."""
        times = []
        for turn in range(2 + (1 if self.device.type == "cpu" else rounds)):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            if turn >= 2:
                times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    @property
    def matmul(self) -> float:
        """The rate of torch's float32 matrix product, in TFLOP/s."""
        if self._matmul is None:
            size = 256 if self.device.type == "cpu" else 8192
            a = torch.randn(size, size, device=self.device)
            self._matmul = 2e-9 * size**3 / self.milliseconds(lambda: a @ a)
            self.found["machine"]["matmul_tflops"] = self._matmul
            print(f"# float32 matrix product: {self._matmul:.4g} TFLOP/s", flush=True)
        return self._matmul
