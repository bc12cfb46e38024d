"""An engine in a process of its own that takes weights by broadcast, as SGLang does.

python -m tests.trainer.receiver DEVICE [DIES_AT_BUCKET]      prints its URL, ends with its stdin

GPU machines without SGLang can so see the trainer's side at work; tests/engine has the real one.
"""

from __future__ import annotations

import math
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import _new_process_group_helper

from tests.trainer.engine_server import EngineServer, says

WAIT = timedelta(seconds=60)


class Receiver(EngineServer):
    """Its weights are what was broadcast last; /sums tells the sum of each.

    /misbehave has it answer the next prompt with nonsense.

    Args:
        device: where they are.
        dies_at: the number of the bucket that ends the process; 0: none.
    """

    def __init__(self, device: str, dies_at: int) -> None:
        super().__init__()
        self.device, self.dies_at = torch.device(device), dies_at
        self.weights: dict[str, torch.Tensor] = {}
        self.group: Any = None
        self.buckets = 0

    def answer(self, path: str, body: Any) -> Any:
        match path:
            case "/server_info":
                return {"tp_size": 1, "pp_size": 1, "dp_size": 1}
            case "/sums":
                return {name: tensor.double().sum().item() for name, tensor in self.weights.items()}
            case "/init_weights_update_group":
                self.join(body)
            case "/destroy_weights_update_group":
                self.group = None
            case "/update_weights_from_distributed":
                self.receive(body)
            case "/misbehave":
                self.faults["/generate"] = [says([])]
            case "/begin_weight_update" | "/end_weight_update":
                pass
            case _:
                return super().answer(path, body)
        return {"success": True, "message": "Success"}

    def join(self, body: dict[str, Any]) -> None:
        address, world = body["master_address"], body["world_size"]
        store = TCPStore(address, body["master_port"], world, False, timeout=WAIT)
        self.group, _ = _new_process_group_helper(
            world,
            body["rank_offset"],
            [],
            body["backend"],
            PrefixStore(body["group_name"], store),
            group_name=body["group_name"],
            timeout=WAIT,
        )

    def receive(self, body: dict[str, Any]) -> None:
        self.buckets += 1
        if self.buckets == self.dies_at:
            os._exit(9)
        dtypes = [getattr(torch, name) for name in body["dtypes"]]
        kinds = list(zip(body["names"], dtypes, body["shapes"], strict=True))
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in kinds]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        self.group.broadcast(flat, 0).wait()
        parts = flat.split(sizes)
        for (name, dtype, shape), part in zip(kinds, parts, strict=True):
            self.weights[name] = part.view(dtype).reshape(shape)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if body["weight_version"] is not None:
            self.version = body["weight_version"]


def main() -> None:
    dies_at = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with Receiver(sys.argv[1], dies_at) as engine:
        print(engine.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
