"What `make bench` runs: each hot part against its peers in one process, as ratios; writes results/bench.json and ends with 1 where a limit is missed. Parts that are named (bench_replay, bench_importance, ...) are measured again, the rows of the others stay."
from __future__ import annotations
import importlib.util, json, os, sys
from pathlib import Path

for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[k] = "1" # one thread on both sides; before numpy is imported
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tests")) # what the files of benchmarks share
PARTS = {"bench_replay": "replay_ratios", "bench_importance": "importance_ratios", "bench_trainer": "trainer_ratios", "bench_addon": "addon_ratios"}

def rows(name:str, function:str)->list[dict]:
    "The rows of one file of benchmarks."
    spec = importlib.util.spec_from_file_location(name, ROOT/"tests"/f"{name}.py"); module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return getattr(module, function)()

def main()->int:
    f = ROOT/"results"/"bench.json"; only = sys.argv[1:] or list(PARTS); unknown = [p for p in only if p not in PARTS]
    if unknown: sys.exit(f"bench.py {unknown[0]}: expected parts among {', '.join(PARTS)}; fix: correct the name, or give none")
    from sage_repro.core.config import write_atomic
    out = json.loads(f.read_text(encoding="utf-8")) if sys.argv[1:] and f.is_file() else []
    for name in only:
        for r in rows(name, PARTS[name]):
            new = {k: r.get(k) for k in ("id", "ratio", "limit", "low", "high", "status")}; at = next((i for i, o in enumerate(out) if o["id"] == r["id"]), len(out)); out[at:at+1] = [new]
            show = lambda x: "" if x is None else f"{x:.3f}"
            print(f"{r['id']:44} {show(r.get('ratio')):>7} [{show(r.get('low'))}, {show(r.get('high'))}]  limit {show(r.get('limit')) or 'none':>6}  {r['status']}", flush=True)
        write_atomic(f, json.dumps(out, indent=1) + "\n") # what is measured is kept, should a later part fail
    print("wrote results/bench.json")
    return int(any(r["status"] == "miss" for r in out))

if __name__ == "__main__": sys.exit(main())
