"""An endless stream in bounded memory: queries from a generator, never a list, through everything that keeps state. `python tests/test_endless.py 1000000 50000` prints the resident memory as it goes."""
from __future__ import annotations
import json, os, subprocess, sys, time, zlib
from pathlib import Path
import numpy as np
import pytest

TOOLS, WORDS = 64, 300

class WordVectors:
    "A tiny backbone: the normalised mean of a fixed random vector for each word."
    mode, dim, cache, model, name = "frozen", 32, None, None, "word-vectors"
    def __init__(self): self.table = np.random.default_rng(0).standard_normal((4096, self.dim)).astype(np.float32)
    def encode(self, texts, batch:int=64):
        words = [t.split() for t in texts]; at = np.fromiter((zlib.crc32(w.encode()) & 4095 for ws in words for w in ws), np.int64)
        x = np.add.reduceat(self.table[at], np.cumsum([0, *map(len, words)])[:-1]); return x/np.linalg.norm(x, axis=1, keepdims=True)

def a_library():
    from sage_repro.bench.schema import Tool
    return [Tool(tool_id=f"t{i}", name=f"tool{i}", description=" ".join(f"w{(7*i + j) % WORDS}" for j in range(8))) for i in range(TOOLS)]

def endless(seed:int=0):
    "Queries without end: four words of the right tool, and two of any."
    from sage_repro.bench.schema import SelectionSample
    rng = np.random.default_rng(seed); n = 0
    while True:
        gold = rng.integers(TOOLS, size=1024); words = np.hstack([(7*gold[:, None] + rng.integers(8, size=(1024, 4))) % WORDS, rng.integers(WORDS, size=(1024, 2))])
        for g, ws in zip(gold.tolist(), words.tolist()): n += 1; yield SelectionSample(sample_id=f"s{n:09d}", query=" ".join(f"w{w}" for w in ws), gold=(f"t{g}",))

def learner(**changes):
    "SSIS with all three terms, prioritised replay, and a memory of everything with its three experts."
    from sage_repro.stream.methods import build, method
    return build(method("SAGE_full", **(dict(memory="all", experts=("memory", "words", "tools")) | changes)), a_library(), WordVectors(), seed=0)

def through(t, n:int, every:int, seen, seed:int=0):
    "Run n samples; `seen(position)` at every `every`-th."
    from itertools import islice
    return t.run(islice(endless(seed), n), progress=lambda p: seen(p) if p % every == 0 else None)

def state_bytes(t)->int: # arrays and JSON of all that learning depends on
    from sage_repro.stream.checkpoint import state
    tree, arrays = state(t); return sum(a.nbytes for a in arrays.values()) + len(json.dumps(tree))

def resident()->float: # MiB
    return int(Path("/proc/self/statm").read_text().split()[1])*os.sysconf("SC_PAGE_SIZE")/2**20

def growth(at, mib)->tuple[float, float]:
    "Last quarter's median over the first's; the straight line's rise over the whole span, as a share of the first quarter."
    at, mib = np.array(at, float), np.array(mib); k = max(1, len(mib)//4); first = np.median(mib[:k])
    return float(np.median(mib[-k:])/first), float(np.polyfit(at, mib, 1)[0]*(at[-1] - at[0])/first)

def test_the_stream_is_what_it_says():
    from itertools import islice
    a, b, c = (list(islice(endless(s), 2100)) for s in (0, 0, 1))
    assert [s.query for s in a] == [s.query for s in b] != [s.query for s in c] and len({s.sample_id for s in a}) == 2100
    x = WordVectors().encode(["w1 w2", "w2", "w2 w1"]); assert np.allclose(np.linalg.norm(x, axis=1), 1) and np.allclose(x[0], x[2]) and not np.allclose(x[0], x[1])

def test_growth_is_seen():
    at = np.arange(0, 100, 5); flat, rise = growth(at, 100 + np.zeros(20)); assert flat == 1 and abs(rise) < 1e-9
    flat, rise = growth(at, 100 + .2*at); assert flat > 1.13 and .18 < rise < .2

def test_state_of_20_000_samples():
    "What a checkpoint would hold stops growing once buffer and memory are full; small ones, so that a few bytes a sample show."
    t, sizes = learner(capacity=256, memory_capacity=512), []
    t.trained_on.limit = 1_000; through(t, 20_000, 2_000, lambda p: sizes.append(state_bytes(t)))
    full = sizes[3:] # from sample 8,000 on
    assert len(t.buffer) == 256 and len(t.memory) == 512 and t.costs.arrived == 20_000 and t.costs.replayed > 0
    slope = np.polyfit(2_000*np.arange(len(full)), full, 1)[0]; assert max(full) < 1.05*min(full) and slope < 1, f"{slope:.2f} bytes a sample; after each 2,000 samples: {sizes}"

@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_million_samples():
    "Resident memory of a process of its own, flat within 5 % once buffer (2,048) and memory (8,192) are full."
    n = int(os.environ.get("SAGE_ENDLESS", 1_000_000)); every = n//40
    p = subprocess.run([sys.executable, __file__, str(n), str(every)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}); assert p.returncode == 0, p.stderr[-2000:]
    rows = [json.loads(line) for line in p.stdout.splitlines()]; full = [r for r in rows if r["buffer"] == 2048 and r["memory"] == 8192]
    flat, rise = growth([r["position"] for r in full], [r["mib"] for r in full]); assert len(full) >= .9*len(rows) - 1
    assert flat <= 1.05 and rise <= .05, f"last quarter over first {flat:.3f}, rise of the line {rise:.3f}: {[r['mib'] for r in rows]}"

if __name__ == "__main__":
    n, every = int(sys.argv[1]), int(sys.argv[2]); t = learner(); start = time.process_time()
    def seen(p): print(json.dumps({"position": p, "mib": round(resident(), 1), "buffer": len(t.buffer), "memory": len(t.memory), "steps": t.costs.steps, "us": round((time.process_time() - start)/p*1e6, 1)}), flush=True)
    through(t, n, every, seen)
