from collections.abc import Sequence

source_digest: str

def available_threads(torch_threads: int) -> int: ...
def build_info() -> dict[str, object]: ...
def cuda_limits(device: int) -> tuple[int, int, int]: ...
def cuda_plan(
    batch: int,
    hidden_size: int,
    directions: int,
    is_double: bool,
    multiprocessors: int,
    shared_bytes: int,
    registers: int,
) -> tuple[str, int, int]: ...
def find_obstacle(
    input: Sequence[int],
    hx: Sequence[int] | None,
    weights: Sequence[Sequence[int]],
    batch_sizes: Sequence[int] | None,
    is_step: bool,
    num_layers: int,
    directions: int,
) -> str: ...
def force_plan(groups: int | None, threads: int = 1, directions_at_once: bool = False) -> None: ...
def isa() -> str: ...
def isa_available() -> list[str]: ...
def plan(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    is_double: bool,
    bidirectional: bool,
    threads: int,
) -> tuple[int, bool, int]: ...
def set_isa(name: str) -> None: ...
def set_pool_is_concurrent(concurrent: bool) -> None: ...
