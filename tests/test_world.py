"Two processes on one stream, started by torchrun."
import json, os, subprocess, sys, textwrap
import pytest

HEAD = '''
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from sage_repro.bench.schema import LibraryEvent, PlanningSample, PlanStep, SelectionSample, TimingSample, Tool
from sage_repro.stream.methods import build, evidence, method
from sage_repro.stream.world import World
out = Path(sys.argv[1])
class Toy: # one fixed random direction a word
    mode, dim, name, pooling, max_length, digest = "frozen", 16, "toy", "mean", 64, "toy"
    def encode(self, texts):
        if not texts: return np.zeros((0, 16), np.float32)
        v = np.stack([sum(np.random.default_rng([ord(c) for c in w]).normal(size=16) for w in t.lower().replace(":", "").split()) for t in texts])
        return (v/np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
topics = "rain stocks trains music pizza sleep lamps maths".split()
tools = [Tool(tool_id=t, name=f"x {t}", description=f"about {t}") for t in topics]
def stream(n, seed=0):
    r = np.random.default_rng(seed)
    for i in range(n):
        a, b = (topics[j] for j in r.choice(8, 2, replace=False))
        if i == n//2: yield LibraryEvent(event="add", tool=Tool(tool_id="new", name="new", description="about volcanoes").model_dump())
        if i % 5 == 3: yield TimingSample(sample_id=f"t{i}", query=f"please {a} {i}", gold=bool(i % 2))
        elif i % 5 == 4: yield PlanningSample(sample_id=f"p{i}", query=f"get {a} and then use {b}", gold=(PlanStep(tool_id=a), PlanStep(tool_id=b, depends_on=(0,))))
        else: yield SelectionSample(sample_id=f"s{i}", query=f"{a[:3]}q {a[:2]}z", gold=(a,))
'''

def two(tmp_path, body, processes=2):
    "Run a script in two processes; what each wrote to out/rank.json."
    (tmp_path/"two.py").write_text(HEAD + textwrap.dedent(body))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    r = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(tmp_path/"two.py"), str(tmp_path)], capture_output=True, text=True, timeout=280, env=env)
    assert r.returncode == 0, r.stderr[-8000:]
    return [json.loads((tmp_path/f"{k}.json").read_text()) for k in range(processes)]

def test_mean_gradient_by_hand(tmp_path):
    "Three samples with mean 1 and one with 5 have the mean 2; a gradient that one process lacks counts as zero, and one that all lack stays away."
    got = two(tmp_path, '''
        w = World(); a, b, c = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
        a.grad = torch.tensor([1. if w.rank == 0 else 5.])
        if w.rank == 0: b.grad = torch.tensor([4.])
        w.average([a, b, c], 3 if w.rank == 0 else 1)
        (out/f"{w.rank}.json").write_text(json.dumps([w.size, a.grad.item(), b.grad.item(), c.grad is None, w.least(w.rank + 1), w.most(w.rank + 1), w.gather(w.rank)]))
    ''')
    assert got == [[2, 2., 3., True, 1, 2, [0, 1]]]*2

@pytest.mark.parametrize("name", ["SAGE_full", "SAGE_plus", "er_reservoir"])
def test_weights_equal_and_shards_consistent(tmp_path, name):
    got = two(tmp_path, f'''
        w = World(); t = build(method("{name}", capacity=200), tools, Toy(), 0, 700, world=w); t.run(stream(700), read_ahead=100)
        same = w.same(t.network); w.unite(t)
        buffer = t.buffer.columns["key"][:len(t.buffer)].tolist() if t.buffer is not None else []
        (out/f"{{w.rank}}.json").write_text(json.dumps(dict(same=same, buffer=buffer, trained=t.trained_on.names(), steps=t.costs.steps, visits=t.costs.gradient_visits, replayed=t.costs.replayed, arrived=t.costs.arrived,
            weights=evidence(t)["weights"], memory=sorted(t.memory.key) if t.memory is not None else [], pool=t.mixture.weights.tolist() if t.mixture else [], tools=t.library.ids)))
    ''')
    a, b = got
    assert a["same"] and b["same"] and a["weights"] == b["weights"] and a["steps"] == b["steps"] > 1 and a["tools"] == b["tools"]
    assert not set(a["trained"]) & set(b["trained"]), "each sample belongs to one process"
    assert not set(a["buffer"]) & set(b["buffer"])
    expected = 700 if name == "SAGE_full" else 420 # selection samples alone, where the three tasks are not in one network
    assert a["arrived"] + b["arrived"] == expected
    if name != "SAGE_plus":
        assert a["replayed"] > 0 and b["replayed"] > 0 and set(a["buffer"]) <= set(a["trained"]) and set(b["buffer"]) <= set(b["trained"])
    else: assert a["memory"] == b["memory"] and len(a["memory"]) == 420 and a["pool"] == b["pool"]
    if name == "er_reservoir": assert len(a["trained"]) + len(b["trained"]) == 420

def test_resume_bit_for_bit(tmp_path):
    "Each process saves its own state; both go on as if nothing had happened."
    got = two(tmp_path, '''
        from itertools import islice
        from sage_repro.stream.checkpoint import restore, state
        w = World(); m = method("SAGE_full", capacity=100); make = lambda: build(m, tools, Toy(), 0, 600, world=w)
        whole = make().run(stream(600), read_ahead=32)
        part = make().run(islice(stream(600), 288), read_ahead=32, final=False); tree, arrays = state(part)
        again = restore(make(), json.loads(json.dumps(tree)), arrays).run(islice(stream(600), 288, None), read_ahead=32)
        (out/f"{w.rank}.json").write_text(json.dumps([evidence(whole) == evidence(again), whole.costs.steps, again.costs.steps, w.same(again.network)]))
    ''')
    assert all(g[0] and g[1] == g[2] > 1 and g[3] for g in got), got

def test_two_processes_learn_as_one_does(tmp_path):
    "With everything admitted, two processes with half the batch each make the steps that one makes alone."
    body = '''
        from dataclasses import replace
        w = World(); t = build(method("one_pass"), tools, Toy(), 0, 640, world=w); t.cfg = replace(t.cfg, batch=32//w.size, expected_steps=20)
        t.run((s for s in list(stream(1080))[:1067] if isinstance(s, SelectionSample)), read_ahead=640)
        (out/f"{w.rank}.json").write_text(json.dumps([t.costs.steps, t.network.query.weight.detach().numpy().tolist()]))
    '''
    import numpy as np
    one = two(tmp_path, body, 1)[0]; both = two(tmp_path, body)
    assert one[0] == both[0][0] == both[1][0] and np.allclose(one[1], both[0][1], atol=1e-5), (one[0], both[0][0], np.abs(np.array(one[1]) - both[0][1]).max())
