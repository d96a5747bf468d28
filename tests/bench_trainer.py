"""The streaming trainer against a lean torch loop, library events in units of a step, and the whole method against three-epoch SFT: ratios of paired, interleaved CPU times in one process, one thread. `python tests/bench_trainer.py [part ...]`"""
from __future__ import annotations
import os
if __name__ == "__main__": os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") # before numpy looks
import math, time
from dataclasses import replace
import numpy as np

from bench_rows import one_thread, row, show

cpu = time.process_time # of this process: others' turns on the machine do not count
def _row(id, limit, ratios, **more): return row(f"trainer.{id}", limit, ratios, **more)

# ---- a world of random vectors

class Table:
    "A frozen backbone that looks its vectors up; a text that it has not met gets a random one, at once."
    mode, cache, model, name = "frozen", None, None, "table"
    def __init__(self, dim:int=384, seed:int=0): self.dim, self.rng, self.at = dim, np.random.default_rng(seed), {}
    def encode(self, texts, batch:int=64):
        new = [t for t in dict.fromkeys(texts) if t not in self.at]
        if new: v = self.rng.standard_normal((len(new), self.dim), np.float32); self.at.update(zip(new, v/np.linalg.norm(v, axis=1, keepdims=True)))
        return np.stack([self.at[t] for t in texts])

def a_tool(i): # the i-th of an endless library
    from sage_repro.bench.schema import Tool
    words = "order invoice route weather translate resize archive notify search convert".split()
    return Tool(tool_id=f"t{i}", name=f"tool_{i}", description=" ".join(f"{words[(i*k + k*k) % 10]}{i*k % 37}" for k in range(1, 21)) + ".")

def batches(t, n_tools:int, steps:int, batch:int=32, seed:int=1):
    "Arriving batches as the trainer makes them, from a backbone of random vectors; one right tool each, among the first n_tools."
    from sage_repro.bench.schema import SelectionSample
    rng = np.random.default_rng(seed)
    for i in range(steps): yield t.batch([SelectionSample(sample_id=f"s{seed}-{i}-{j}", query=f"please do number {seed} {i} {j}", gold=(f"t{g}",)) for j, g in enumerate(rng.integers(n_tools, size=batch).tolist())])

# ---- a lean loop

def lean(t, steps:int, encode=None):
    "The same network, loss, clip, schedule and fused AdamW as the trainer `t`, on tensors that are there beforehand; -> a step, and its network."
    import torch
    from sage_repro.model.losses import listwise_loss
    from sage_repro.model.network import DecisionNetwork
    net = DecisionNetwork(t.network.cfg, len(t.library.tools)); own = [p for p in net.parameters() if p.requires_grad]; groups = [{"params": own, "base": t.cfg.lr}]
    if encode is not None: groups.append({"params": [p for p in encode.model.parameters() if p.requires_grad], "base": t.cfg.lr/10})
    params = [p for g in groups for p in g["params"]]; opt = torch.optim.AdamW(groups, lr=t.cfg.lr, weight_decay=t.cfg.weight_decay, fused=True)
    tools, rows, up, k = torch.from_numpy(t.library.vectors.copy()), torch.arange(len(t.library.tools)), max(1, t.cfg.warmup*steps), 0
    def step(x, target):
        nonlocal k; k += 1
        for g in opt.param_groups: g["lr"] = g["base"]*(k/up if k < up else .5*(1 + math.cos(math.pi*min(1, k/steps))))
        opt.zero_grad(set_to_none=True)
        loss = listwise_loss(net(x if encode is None else encode.forward(x), tools, rows)[0], target).mean(); loss.backward()
        torch.nn.utils.clip_grad_norm_(params, t.cfg.clip); opt.step()
    return step, net

def against_lean(m, n_tools:int, steps:int, warm:int=10)->np.ndarray: # (steps - warm,) time of a batch through the trainer over the lean step on it
    "Both see the same batches in turn, and end with the same weights."
    import torch
    from sage_repro.stream.methods import build
    t = build(m, [a_tool(i) for i in range(n_tools)], Table(), n_stream=32*steps); step, net = lean(t, steps); out = []
    for i, b in enumerate(batches(t, n_tools, steps)):
        x, y = torch.from_numpy(b.x.copy()), torch.from_numpy(b.gold.copy())
        def ours(): s = cpu(); t.consume_batch(b); return cpu() - s
        def theirs(): s = cpu(); step(x, y); return cpu() - s
        if i % 2: a = ours(); c = theirs()
        else: c = theirs(); a = ours()
        out.append(a/c)
    ours, theirs = t.network.state_dict(), net.state_dict()
    far = max(float((ours[k][:len(theirs[k])] - theirs[k]).abs().max()) if theirs[k].dim() else float((ours[k] - theirs[k]).abs()) for k in theirs)
    assert far < 1e-4 and t.costs.gradient_visits == 32*steps, f"the lean loop is no twin: weights differ by {far}"
    return np.array(out[warm:])

def lean_rows(steps:int=150):
    "One pass over frozen vectors, 384 wide, in batches of 32: with the cross-attention over the corpus and without, and over a small library."
    from sage_repro.stream.methods import METHODS
    one = METHODS["one_pass"]
    for id, m, n_tools in (("step_vs_lean", one, 1200), ("step_vs_lean.heads_only", replace(one, fusion=False), 1200), ("step_vs_lean.199_tools", one, 199)):
        yield _row(id, 1.05, against_lean(m, n_tools, steps*(1 if n_tools > 1000 else 2)), tools=n_tools)

# ---- LoRA

def lora_rows(steps:int=12, warm:int=2):
    "SAGE-Bench's queries through the embedded encoder with LoRA: what arrives as samples, against a lean step on texts and targets."
    import torch
    from sage_repro.bench.sagebench import load_library, load_sagebench
    from sage_repro.bench.schema import query_text
    from sage_repro.model.backbone import load_backbone
    from sage_repro.stream.methods import METHODS, build
    tools, samples, out = load_library(), load_sagebench("stream")[:32*steps], []; frozen = load_backbone()
    ours, theirs = load_backbone(mode="lora"), load_backbone(mode="lora")
    now, ours.encode = ours.encode, frozen.encode; t = build(replace(METHODS["one_pass"], mode="lora"), tools, ours, n_stream=32*steps); ours.encode = now # LoRA starts at zero: the tools' vectors are the frozen encoder's
    step, _ = lean(t, steps, theirs); gold = torch.from_numpy(t.library.columns[t.library.gold_rows([s.gold for s in samples])])
    for i in range(steps):
        part, texts, y = samples[32*i:32*i + 32], [query_text(s) for s in samples[32*i:32*i + 32]], gold[32*i:32*i + 32]
        def a(): s = cpu(); t.consume(part); return cpu() - s
        def b(): s = cpu(); step(texts, y); return cpu() - s
        if i % 2: u = a(); v = b()
        else: v = b(); u = a()
        out.append(u/v)
    assert t.costs.steps == steps
    yield _row("lora_step_vs_lean", 1.05, out[warm:], tools=len(tools))

# ---- library events between two batches

def the_round(n:int, first:int, n_tools:int):
    "n changes: half arrive, a quarter retire, a quarter are described anew."
    from sage_repro.bench.schema import LibraryEvent
    new, gone = max(1, n//2), n//4; card = lambda i: a_tool(i).model_dump()
    return [*(LibraryEvent(event="add", tool=card(first + i)) for i in range(new)), *(LibraryEvent(event="retire", tool={"tool_id": f"t{n_tools//2 + i}"}) for i in range(gone)),
            *(LibraryEvent(event="update", tool=card(i) | {"description": f"{card(i)['description']} Now better."}) for i in range(n - new - gone))]

def a_round(m, n:int, n_tools:int=1200, seed:int=0)->tuple[float, float]: # in units of one lean step; a batch's time after over that before
    "What n events cost: the time from the first event until nothing of it is left to do (the words' index is made anew when the pool is next consulted), less that of as many batches later on, in the library as it then is, gradient steps counted out of both. A larger library makes every step dearer: that is no fixed cost, and the second number."
    import torch
    from sage_repro.bench.schema import Tool, tool_text
    from sage_repro.stream.methods import build
    backbone = Table(seed=seed); t = build(m, [a_tool(i) for i in range(n_tools)], backbone, n_stream=10**6); events = the_round(n, n_tools, n_tools)
    backbone.encode([tool_text(Tool.model_validate(e.tool)) for e in events if e.event != "retire"]) # a pass of the encoder for each new text is work, not a fixed cost: it has its own clock
    span = 1 if t.mixture is None else t.look_every; part = batches(t, n_tools//2, 10**6, seed=seed); one, _ = lean(t, 10**6) # gold among tools that stay
    def lean_step(b): s = cpu(); one(torch.from_numpy(b.x), torch.from_numpy(b.gold)); return cpu() - s
    step = np.median([lean_step(b) for b in batches(t, n_tools//2, 12, seed=seed + 100)][2:])
    def turn(before=lambda: None): # -> seconds, and those of it that are not gradient steps
        some = [next(part) for _ in range(span)]; k = t.costs.steps; s = cpu(); before(); [t.consume_batch(b) for b in some]; s = cpu() - s
        return s, s - (t.costs.steps - k)*step
    for _ in range(6): turn()
    old = np.median([turn() for _ in range(5)], 0); first = turn(lambda: t.run(events, final=False)); new = np.median([turn() for _ in range(7)], 0)
    return (first[1] - new[1])/step, new[0]/old[0]

def round_rows(repeats:int=7):
    "1, 50 and 250 changes of a library of 1,200 between two batches."
    from sage_repro.stream.methods import METHODS
    for id in ("one_pass", "SAGE_plus"):
        m = METHODS[id]
        for n in (1, 50, 250):
            fixed, later = np.array([a_round(m, n, seed=s) for s in range(repeats)]).T
            yield _row(f"round.{id}.{n}_events", 1., fixed)
            if n == 250 and id == "one_pass": yield _row(f"round.{id}.{n}_events.step_after_vs_before", None, later)

# ---- the whole method, heads alone

def whole_rows(seeds:int=3, ids=("SAGE_plus", "one_pass")):
    "From the stream (SAGE-Bench's training queries, vectors cached) to the trained model, scoring and memory included, over three epochs of SFT; the limit on visits is a row of its own; one pass over everything is there for reference, without one."
    from sage_repro.bench.sagebench import load_library, load_sagebench
    from sage_repro.bench.schema import query_text, tool_text
    from sage_repro.model.backbone import load_backbone
    from sage_repro.stream.methods import METHODS, train
    tools, samples = load_library(), load_sagebench("train") + load_sagebench("stream"); cached = Table(); assert len(samples) >= 4000
    for texts in ([query_text(s) for s in samples], [tool_text(t) for t in tools]): cached.at |= zip(texts, load_backbone().encode(texts))
    seconds, visits = {k: [] for k in (*ids, "A_baseline")}, {}
    for seed in range(seeds):
        order = [samples[i] for i in np.random.default_rng([seed, 5]).permutation(len(samples))]; names = list(seconds)
        for k in names[seed % len(names):] + names[:seed % len(names)]:
            s = cpu(); t = train(METHODS[k], tools, order, cached, seed); seconds[k].append(cpu() - s); visits.setdefault(k, []).append(t.costs.gradient_visits/len(samples))
    base = np.array(seconds["A_baseline"])
    for k in ids: yield _row(f"heads.{k}_vs_sft3", .4, np.array(seconds[k])/base, queries=len(samples), visits=round(float(np.mean(visits[k])), 3))
    yield _row("heads.SAGE_plus_visits", .36, visits["SAGE_plus"])

PARTS = {"lean": lean_rows, "lora": lora_rows, "rounds": round_rows, "whole": whole_rows}

def trainer_ratios(only=None)->list[dict]: # only: names of PARTS; None: all
    "Every row, one thread."
    return one_thread(PARTS, only)

if __name__ == "__main__": show(PARTS)
