"Prioritised replay against other libraries in one process, one thread, as ratios of paired times: `python tests/bench_replay.py`. Not collected by pytest."
from __future__ import annotations
import json, os, sys, time
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
from sage_repro.stream.replay import PrioritisedBuffer

NEW = 8 # samples added in one call

def fill(add, capacity:int, rng):
    "Fill a buffer in pieces of 1,024, priorities uniform in [0, 1)."
    for i in range(0, capacity, 1024): x = np.arange(i, min(i + 1024, capacity)); add(x, rng.random(len(x)))

# ---- one cycle each: add 8, draw n with weights, fetch their rows, update n

def ours(capacity:int, n:int, index:str, evict:str):
    rng = np.random.default_rng(0); b = PrioritisedBuffer(capacity, rng, evict=evict, index=index); x = np.arange(NEW)
    fill(lambda i, p: b.add({"i": i}, p), capacity, rng)
    def cycle():
        b.add({"i": x}, rng.random(NEW)); slots, w = b.sample(n); r = b.rows(slots); b.update(slots, rng.random(n)); return r, w
    return cycle

def cpprb(capacity:int, n:int):
    from cpprb import PrioritizedReplayBuffer
    rng = np.random.default_rng(0); b = PrioritizedReplayBuffer(capacity, {"i": {"dtype": np.int64}}, alpha=.6); x = np.arange(NEW)
    fill(lambda i, p: b.add(i=i, priorities=p), capacity, rng)
    def cycle():
        b.add(i=x, priorities=rng.random(NEW)); s = b.sample(n, beta=.4); b.update_priorities(s["indexes"], rng.random(n)); return s
    return cycle

def tianshou(capacity:int, n:int):
    "Eight in one call are eight environments to it; what enters takes the highest priority so far."
    from tianshou.data import Batch, PrioritizedVectorReplayBuffer
    rng = np.random.default_rng(0); b = PrioritizedVectorReplayBuffer(capacity, NEW, alpha=.6, beta=.4); no = np.zeros(NEW, bool); x = np.arange(NEW); zero = np.zeros(NEW)
    add = lambda: b.add(Batch(obs=x, act=x, rew=zero, terminated=no, truncated=no, obs_next=x, info=Batch()))
    for _ in range(capacity//NEW): add()
    def cycle():
        add(); rows, slots = b.sample(n); b.update_weight(slots, rng.random(n)); return rows
    return cycle

def torchrl(capacity:int, n:int):
    import torch
    from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer
    from tensordict import TensorDict
    torch.set_num_threads(1); rng = np.random.default_rng(0)
    try: b = TensorDictPrioritizedReplayBuffer(alpha=.6, beta=.4, storage=LazyTensorStorage(capacity), batch_size=n, priority_key="p")
    except RuntimeError as e: raise ImportError(f"torchrl {e}") from e # its compiled part does not load beside this torch
    add = lambda i, p: b.extend(TensorDict({"i": torch.from_numpy(i), "p": torch.from_numpy(p)}, [len(i)]))
    fill(add, capacity, rng); x = np.arange(NEW)
    def cycle():
        add(x, rng.random(NEW)); s = b.sample(); b.update_priority(s["index"], torch.from_numpy(rng.random(n))); return s
    return cycle

PEERS = {"cpprb": cpprb, "tianshou": tianshou, "torchrl": torchrl}

def paired(a, b, calls:int, pairs:int, warm:int)->np.ndarray:
    "(pairs,) time of `calls` of a over that of b, taken in turn, which goes first changing. CPU time of this thread: other processes' turns do not count."
    def turn(f):
        t = time.thread_time()
        for _ in range(calls): f()
        return time.thread_time() - t
    for _ in range(warm): a(); b()
    out = np.empty(pairs)
    for i in range(pairs):
        if i % 2: x = turn(a); y = turn(b)
        else: y = turn(b); x = turn(a)
        out[i] = x/y
    return out

# capacity, sample, index, evict, limit to cpprb's time
CASES = [(2048, 32, "flat", "oldest", .7), (2048, 32, "flat", "lowest", .7), (2048, 32, "numba", "oldest", .3), (2048, 32, "numba", "lowest", .3),
         (1_000_000, 256, "numba", "oldest", .5), (1_000_000, 256, "numba", "lowest", .5), (1_000_000, 256, "tree", "oldest", 1.), (1_000_000, 256, "tree", "lowest", 1.)]

def replay_ratios(
    peers=("cpprb", "tianshou", "torchrl"), # which to run, of `PEERS`
    pairs:int=300, # paired turns for each ratio
)->list[dict]: # id, ratio (median), low and high (10th and 90th percentile of the pairs), limit, status: ok, miss, or "not run: reason"
    "The cycle's time over each peer's; a peer or numba that is not there is said not to have run."
    out = []
    for capacity, n, index, evict, limit in CASES:
        for peer in peers:
            row = {"id": f"replay.{capacity}.{index}.{evict}.{peer}", "ratio": None, "low": None, "high": None, "limit": limit}
            try:
                small = capacity < 100_000; r = paired(ours(capacity, n, index, evict), PEERS[peer](capacity, n), 30 if small else 4, pairs if small else pairs//2, 300 if small else 30)
                low, mid, high = np.quantile(r, [.1, .5, .9]).round(3).tolist(); row |= {"ratio": mid, "low": low, "high": high, "status": "ok" if mid <= limit else "miss"}
            except ImportError as e: row["status"] = f"not run: {e}"
            out.append(row)
    return out

if __name__ == "__main__":
    for row in replay_ratios(*([sys.argv[1].split(",")] if len(sys.argv) > 1 else [])): print(json.dumps(row))
