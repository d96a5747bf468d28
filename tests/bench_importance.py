"""Importance against its limits: diversity, Fisher and the whole score as ratios of paired, interleaved times in one process, one thread (its own seconds: neighbours on the machine do not stretch them). `python tests/bench_importance.py [id ...]`"""
import os
if __name__ == "__main__": os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") # before numpy looks
import numpy as np

from bench_rows import one_thread, row as _row, show

def _not_run(id, limit, why): return dict(id=id, ratio=None, low=None, high=None, limit=limit, status=f"not run: {why}")

def _pairs(calls, repeats):
    from sage_repro.stream.diversity import paired_times
    return paired_times(calls, repeats)

def exact_window(size=4096, d=384, batch=32, repeats=60):
    "A full window, adds and evictions included, against the faster of the two bare products, and against faiss."
    from sage_repro.stream.diversity import ExactWindow, FaissWindow, clustered
    x = clustered(size + batch*(repeats + 2), np.random.default_rng(0), d=d); new = np.split(x[size:], repeats + 2); w, p = ExactWindow(size), ExactWindow(size, first=False)
    w.enter(x[:size]); p.enter(x[:size]); w.distance(new[-1]); p.distance(new[-1])
    out, outT = np.empty((batch, size), np.float32), np.empty((size, batch), np.float32); fresh = lambda f: (lambda it=iter(new): f(next(it))) # each call has samples of its own: a repeated one would find itself
    calls = {"window": fresh(w.distance), "plain": fresh(p.distance), "product": fresh(lambda x: np.matmul(x, w.data.T, out=out)), "productT": fresh(lambda x: np.matmul(w.data, x.T, out=outT))}
    try: f = FaissWindow(size); f.enter(x[:size]); f.distance(new[-1]); import faiss; faiss.omp_set_num_threads(1); calls["faiss"] = fresh(f.distance) # the same job: search, evict, add
    except ImportError: pass
    t = _pairs(calls, repeats); bare = min("product", "productT", key=lambda k: np.median(t[k]))
    yield _row("diversity_exact_vs_product", 1.2, t["window"]/t[bare], first_look=w.first)
    yield _row("diversity_plain_vs_product", 1.2, t["plain"]/t[bare])
    yield _row("diversity_exact_vs_faiss", .4, t["window"]/t["faiss"], bare_product=round(float(np.median(t[bare]/t["faiss"])), 3), first_look=w.first) if "faiss" in t else _not_run("diversity_exact_vs_faiss", .4, "faiss is not installed (pip install faiss-cpu)")

def inverted_window(size=65_536, d=384, batch=32, repeats=40):
    "The inverted file against the exact window without its first look, on clustered vectors; its refresh, once a window, is spread over the calls. The second row is the share of true nearest that it misses."
    import time
    from sage_repro.stream.diversity import ExactWindow, InvertedWindow, clustered
    x = clustered(size + batch*repeats, np.random.default_rng(0), d=d); w, e = InvertedWindow(size, np.random.default_rng(1)), ExactWindow(size, first=False)
    for i in range(0, size, 4096): w.enter(x[i:i+4096]); e.enter(x[i:i+4096])
    t = time.process_time(); w.refresh(); spread = (time.process_time() - t)*batch/w.every
    times, hit = [], []
    for i in range(size, len(x), batch):
        got = []
        for o in (w, e)[::1 if i//batch % 2 else -1]: t = time.process_time(); v = o.distance(x[i:i+batch]); got.append((o is e, time.process_time() - t, v))
        (_, a, va), (_, b, vb) = sorted(got, key=lambda g: g[0]); times.append((a + spread)/b); hit.append(np.abs(va - vb) < 1e-5)
    yield _row("diversity_inverted_vs_exact", .4, times, cells=w.cells, probes=w.probes)
    miss = 1 - float(np.mean(hit))
    yield dict(id="diversity_inverted_missed", ratio=round(miss, 5), low=None, high=None, limit=.01, status="ok" if miss <= .01 else "miss", n=len(times)*batch)

def _step(model, losses, watch, params, steps=20): # 20: whole periods of what is done in every 4th (cheap Fisher) and every 10th step (anchor), so that no median leaves them out
    "Some training steps as a call; `watch` wraps forward and backward."
    import torch
    opt = torch.optim.AdamW(params, lr=1e-4, fused=True)
    def one():
        opt.zero_grad(set_to_none=True)
        if watch is None: losses().mean().backward(); opt.step(); return
        with watch.watch(): losses().mean().backward()
        opt.step(); watch.follow()
    def run():
        for _ in range(steps): one()
    return run

def _three(make, repeats):
    "Times of the bare step, with the exact, and with the cheap estimator: three copies of a model, so that no hook of one slows another."
    from sage_repro.stream.fisher import BatchMeanFisher, EmpiricalFisher
    calls, kept = {}, {}
    for name, kind in (("bare", None), ("exact", EmpiricalFisher), ("cheap", BatchMeanFisher)):
        model, losses = make(); est = kept[name] = kind and kind(model); calls[name] = _step(model, losses, est, [p for p in model.parameters() if p.requires_grad])
    return _pairs(calls, repeats), kept

def lora(hidden=256, layers=4, tokens=32, batch=32, rank=8, fresh=False): # fresh: new random data in each pass
    "A BERT of random weights with LoRA on all its linear layers, a mean over tokens, 50 fixed classes."
    import peft, torch, transformers
    g = torch.Generator().manual_seed(0)
    def make():
        cfg = transformers.BertConfig(vocab_size=1000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=4*hidden, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
        m = peft.get_peft_model(transformers.BertModel(cfg, add_pooling_layer=False), peft.LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear"))
        head = torch.randn(50, hidden, generator=g); data = lambda: (torch.randint(1000, (batch, tokens), generator=g), torch.randint(50, (batch,), generator=g)); first = data()
        def losses(): ids, y = data() if fresh else first; return torch.nn.functional.cross_entropy(m(input_ids=ids).last_hidden_state.mean(1) @ head.T, y, reduction="none")
        return m, losses
    return make

def mlp(sizes=(384, 512, 512, 100), batch=32, fresh=False):
    "A network of linear layers and rectifiers."
    import torch
    g = torch.Generator().manual_seed(0)
    def make():
        m = torch.nn.Sequential(*[l for i, o in zip(sizes, sizes[1:]) for l in (torch.nn.Linear(i, o), torch.nn.ReLU())][:-1])
        data = lambda: (torch.randn(batch, sizes[0], generator=g), torch.randint(sizes[-1], (batch,), generator=g)); first = data()
        def losses(): x, y = data() if fresh else first; return torch.nn.functional.cross_entropy(m(x), y, reduction="none")
        return m, losses
    return make

def fisher_lora(repeats=10):
    "Exact and cheap on LoRA weights, each against a bare step."
    t, _ = _three(lora(), repeats)
    yield _row("fisher_exact_lora_vs_step", 1.15, t["exact"]/t["bare"])
    yield _row("fisher_cheap_lora_vs_step", 1.05, t["cheap"]/t["bare"])

def fisher_mlp(repeats=60):
    "Exact on all weights, against a bare step, and against a step whose gradients come from vmap (which thereby yields both mean and squares)."
    import torch
    from torch.func import functional_call, grad, vmap
    t, kept = _three(mlp(), repeats)
    yield _row("fisher_exact_mlp_vs_step", 1.5, t["exact"]/t["bare"])
    yield _row("fisher_cheap_mlp_vs_step", 1.05, t["cheap"]/t["bare"])
    from sage_repro.stream.fisher import EmpiricalFisher
    make = mlp(); m, losses = make(); est = EmpiricalFisher(m); hooked = _step(m, losses, est, list(m.parameters()), steps=1)
    v, _ = make(); opt = torch.optim.AdamW(v.parameters(), lr=1e-4, fused=True); named = dict(v.named_parameters()); state = {}; g = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 384, generator=g), torch.randint(100, (32,), generator=g)
    per = vmap(grad(lambda p, x, y: torch.nn.functional.cross_entropy(functional_call(v, p, (x[None],)), y[None])), in_dims=(None, 0, 0))
    def step():
        got = per({k: p.detach() for k, p in named.items()}, x, y)
        for k, p in named.items():
            p.grad = got[k].mean(0); new = got[k].square_().mean(0)
            state[k] = new if k not in state else state[k].lerp_(new, .01)
        opt.step()
    t = _pairs({"hooks": hooked, "vmap": step}, 30)
    yield _row("fisher_exact_mlp_vs_vmap", .9, t["hooks"]/t["vmap"])

def fisher_agreement(steps=100):
    "Rank correlation of the cheap estimate to the exact one over some training on random data, new in each step; shown, no limit. `ratio` is Spearman's rho; low and high are over three seeds."
    import torch
    from sage_repro.stream.fisher import BatchMeanFisher, EmpiricalFisher, agreement
    for name, make_of, n in (("lora", lambda: lora(hidden=64, layers=2, tokens=16, fresh=True), steps//2), ("mlp", lambda: mlp(fresh=True), steps)):
        rho = []
        for seed in range(3):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed); m, losses = make_of()(); a, b = EmpiricalFisher(m), BatchMeanFisher(m); params = [p for p in m.parameters() if p.requires_grad]; opt = torch.optim.AdamW(params, lr=1e-3)
                for _ in range(n):
                    opt.zero_grad()
                    with a.watch(), b.watch(): losses().mean().backward()
                    opt.step(); a.follow(); b.follow()
            rho.append(agreement(b.fisher, a.fisher)["spearman"])
        yield dict(id=f"fisher_cheap_spearman_{name}", ratio=round(float(np.median(rho)), 3), low=round(min(rho), 3), high=round(max(rho), 3), limit=None, status="ok")

def whole_score(batch=32, repeats=25, window=4096):
    "Everything SSIS adds to an uncached pass of the embedded encoder over 32 queries: heads, U, D over a full window, F with its backward pass to the query map, and the map's Fisher. The ratio is the added time."
    from sage_repro.bench.sagebench import load_library, load_sagebench
    from sage_repro.model.backbone import load_backbone
    from sage_repro.stream.diversity import ExactWindow, clustered
    from sage_repro.stream.methods import METHODS, build
    tools, samples, backbone = load_library(), load_sagebench("stream")[:batch], load_backbone()
    t = build(METHODS["ssis"], tools, backbone, n_stream=10*batch); backbone.cache = None
    b = t.batch(samples); texts = b.text.tolist()
    for _ in range(3): t._step(b) # the Fisher and its anchor exist
    t.scorer.window = ExactWindow(window); t.scorer.window.enter(clustered(window, np.random.default_rng(0)))
    assert t.fisher.fisher is not None and t.scorer.needs == {"loss", "embedding", "risk"}
    times = _pairs({"pass": lambda: backbone.encode(texts), "score": lambda: t._score(b)}, repeats)
    yield _row("score_added_to_backbone", .10, times["score"]/times["pass"], tools=len(tools), window=window)

PARTS = {"exact": exact_window, "inverted": inverted_window, "lora": fisher_lora, "mlp": fisher_mlp, "agreement": fisher_agreement, "score": whole_score}

def importance_ratios(only=None)->list[dict]: # only: names of PARTS; None: all
    "Every row, one thread."
    return one_thread(PARTS, only)

if __name__ == "__main__": show(PARTS)
