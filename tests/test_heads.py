"The planner and the timing head outside their notebooks: on the real encoder, through the command line, and with the tools that a request offers."
from __future__ import annotations
import json
import numpy as np, pytest
from sage_repro.bench.schema import DataError, PlanningSample, TimingSample, load_samples, load_tools, write_jsonl
from test_cli import TOOLS, call, lines, one_backbone, read, timing, tool_rows, w, warm  # noqa: F401 (fixtures)
from test_external import HERE, external

def plans(n:int, seed:int, name:str, offer:int=0)->list[dict]:
    "Two steps, the second after the first; of what is offered, two are needed."
    r = np.random.default_rng(seed); out = []
    for k in range(n):
        (a, *_, qa), (b, *_, qb) = (TOOLS[j] for j in r.choice(len(TOOLS), 2, replace=False)); more = [t[0] for t in TOOLS if t[0] not in (a, b)]
        out.append({"sample_id": f"{name}{k}", "task": "planning", "query": f"{r.choice(qa.split(';'))}, then {r.choice(qb.split(';'))}", "gold": [{"tool_id": a}, {"tool_id": b, "depends_on": [0]}],
                    **({"candidates": sorted([a, b, *r.choice(more, offer - 2, replace=False).tolist()])} if offer else {})})
    return out

def test_the_last_layer_is_the_encoders_own_vector(tmp_path, monkeypatch):
    from sage_repro.model.backbone import load_backbone
    from sage_repro.model.timing import read_layers
    two = ["What is the weather in Graz?", "Write a poem."]; bb = load_backbone(cache=False); x = read_layers(bb, two, (bb.model.config.num_hidden_layers,))
    assert np.allclose(x, bb.encode(two), atol=1e-5) and np.allclose(read_layers(bb, two, ()), x, atol=1e-5)
    monkeypatch.setenv("SAGE_CACHE", str(tmp_path)); cached = load_backbone(); y = read_layers(cached, two, (0, 3)); assert y.shape == (2, 2*bb.dim) and np.allclose(np.linalg.norm(y, axis=1), np.sqrt(2), atol=1e-5)
    cached.tokenizer = None; assert np.array_equal(read_layers(cached, two, (0, 3)), y), "second time without the model"
    cached.cache.db.close()

def test_the_timing_head_learns_on_the_real_encoder(w, warm):
    from sage_repro.agents.timing import build_judge
    from sage_repro.model.timing import TimingConfig, train_timing
    S, ask = ([TimingSample(**s) for s in timing(n, seed, "s")] for n, seed in ((60, 0), (40, 1))); gold = [s.gold for s in ask]
    right = lambda judge: ((judge.probability(ask) > .5) == gold).mean()
    assert right(build_judge("model.timing", S, one_backbone())) > .9 and right(train_timing(S, one_backbone(), 0, TimingConfig.plain(lr=.05))) > .9 and right(train_timing(S, one_backbone(), 0, stream=True)) > .8
    p = [build_judge("model.timing", S, one_backbone(), seed=s).probability(ask) for s in (0, 0, 1)]
    assert np.array_equal(p[0], p[1]) and not np.array_equal(p[0], p[2])

def test_both_train_from_the_command_line(w, tmp_path, warm):
    train = lines(tmp_path/"train.jsonl", [*plans(60, 0, "a"), *timing(40, 1, "b")]); ask = lines(tmp_path/"ask.jsonl", [*plans(20, 2, "c"), *plans(20, 3, "d", offer=3), *timing(20, 4, "e")])
    base = ("eval", "--tools", w/"tools.jsonl", "--samples", ask, "--methods", "model.planner,model.timing,planner.simple"); code, _, err = call(*base, "--out", tmp_path/"none")
    assert code == 2 and "--train" in err and not (tmp_path/"none").exists()
    code, _, err = call(*base, "--train", train, "--out", tmp_path/"o"); assert code == 0, err
    rows = read(tmp_path/"o"/"predictions.jsonl"); got = {(r["method"], r["sample_id"]): r["prediction"] for r in rows}; asked = read(ask)
    of = lambda method, s: [p["tool_id"] for p in got[method, s["sample_id"]]]
    for method in ("model.planner", "planner.simple"): assert all(set(of(method, s)) <= set(s.get("candidates") or [t[0] for t in TOOLS]) for s in asked if s["task"] == "planning")
    right = lambda name: np.mean([of("model.planner", s) == [g["tool_id"] for g in s["gold"]] for s in asked if s["sample_id"][0] == name]); assert right("d") >= right("c") > .5, (right("c"), right("d"))
    assert np.mean([got["model.timing", s["sample_id"]] == s["gold"] for s in asked if s["task"] == "timing"]) > .8
    assert {m["method"] for m in json.loads((tmp_path/"o"/"metrics.json").read_text())} == {"model.planner", "model.timing", "planner.simple"}

def test_offers_survive_a_file_and_are_checked_in_it(tmp_path):
    lib = load_tools(lines(tmp_path/"t.jsonl", tool_rows())); S = [PlanningSample(**s) for s in plans(5, 0, "a", offer=4)]
    assert load_samples(write_jsonl(tmp_path/"s.jsonl", S), lib) == S and "candidates" not in write_jsonl(tmp_path/"n.jsonl", [PlanningSample(**plans(1, 0, "a")[0])]).read_text()
    row = plans(1, 0, "a", offer=3)[0]; row["candidates"].remove(row["gold"][1]["tool_id"])
    with pytest.raises(DataError, match="bad.jsonl:1: field candidates: expected every tool of the plan among the candidates"): load_samples(lines(tmp_path/"bad.jsonl", [row]), lib)

@pytest.mark.external
@external[1]
def test_teval_offers_the_tools_of_the_gold_plan_and_no_other():
    "What the notebook says of the 553 prompts; so a figure with these offers is one of order, not of choice."
    if not (HERE/"teval").is_dir(): pytest.skip("teval is not there")
    from sage_repro.bench.external import load_dataset
    S = load_dataset("teval", HERE).samples; used = [[g.tool_id for g in s.gold] for s in S]; first = [tuple(dict.fromkeys(u)) for u in used]
    assert all(set(s.candidates) == set(u) and len(set(s.candidates)) == len(s.candidates) for s, u in zip(S, used)) and (min(map(len, first)), max(map(len, first))) == (1, 10)
    assert (len(S), sum(len(f) < len(u) for f, u in zip(first, used)), sum(s.candidates == f for s, f in zip(S, first))) == (553, 160, 93)
