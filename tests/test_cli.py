"A new user with twelve tools and a few hundred queries of their own: the command line and the five-line API do what they say."
from __future__ import annotations
import atexit, functools, io, json, os, shutil, subprocess, sys, tempfile, time, warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
import numpy as np
import pytest
from sage_repro.agents.registry import REGISTRY
from sage_repro.bench.schema import load_tools
from sage_repro.paper.cli import main

SAGE_BENCH = Path(sys.executable).parent/"sage-bench"
TOOLS = [("sky", "getForecast", "Weather to come at a place: rain, wind and temperature.", "what is it like outside;shall I take a coat;is it going to pour;how windy will the bay get;will there be frost tonight"),
    ("fx", "fxSpotRate", "The price of one currency in another, now.", "what are my zloty worth;how many yen for a hundred;swap my pounds;is the peso falling;change kroner for me"),
    ("song", "music_player", "Plays songs, albums and playlists.", "put on something loud;I am in the mood for jazz;skip this one;turn the chorus up;some Bach while I cook"),
    ("rail", "train.search", "Finds train connections and fares.", "how do I get to Rome by noon;last connection home;seats to Lyon on Friday;do I change in Basel;cheapest way north without a car"),
    ("pizza", "pizza-order", "Orders a pizza to the door.", "we are hungry for a margherita;two with olives please;bring us dinner with extra cheese;the usual with ham;feed six people tonight"),
    ("nap", "sleepLog", "Records how long somebody slept.", "I went to bed at ten;note that I woke twice;last night was short;add a nap of an hour;seven hours again"),
    ("lamp", "lamp_switch", "Turns lamps on and off.", "it is dark in here;dim the bedroom;lights out;make the hall brighter;I forgot the kitchen bulb"),
    ("tax", "calcTax", "Computes the income tax of a person.", "what do I owe the state;how much is left of my salary;will I get a refund;my bracket this year;deduct the office chair"),
    ("press", "newsHeadlines", "The latest headlines of the press.", "what happened today;who won the election;anything new from Brussels;the front page please;catch me up on the strike"),
    ("word", "dictTranslate", "Translates words between languages.", "how do I say goodbye in Greek;what does Feierabend mean;this menu is all in Thai;the Spanish for owl;put it into French"),
    ("cook", "recipeFinder", "Recipes for given ingredients.", "I have rice and two eggs;what can leeks become;use up the pumpkin;a soup without cream;something with lentils"),
    ("date", "calendarAdd", "Puts an appointment into the calendar.", "dentist on Tuesday at nine;block my Thursday;meet Ann for an hour;remember the wedding in June;move in a call with Bo")]
FRAMES = ["{}", "{}?", "hey, {}", "{}, thanks", "sorry to bother you: {}", "quick one, {}"]
TALK = ["what do you think of poetry", "tell me a joke", "why is the sky blue", "is seven prime", "you are funny", "do you like mornings", "explain irony", "good night, friend"]

def lines(path:Path, rows)->Path:
    "Write JSON Lines, without the kit's own writer."
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path

def read(path)->list[dict]: return [json.loads(l) for l in Path(path).read_text(encoding="utf-8").splitlines()]

def tool_rows()->list[dict]: return [{"tool_id": i, "name": n, "description": d} for i, n, d, _ in TOOLS]

def queries(n:int, seed:int, name:str)->list[dict]:
    "Selection samples; the tools' descriptions share hardly a word with them."
    r = np.random.default_rng(seed)
    said = [(i, p) for i, _, _, q in TOOLS for p in q.split(";")]
    picks = [said[j] for j in r.integers(len(said), size=n)]
    return [{"sample_id": f"{name}{k}", "task": "selection", "query": str(r.choice(FRAMES)).format(p), "gold": [i]} for k, (i, p) in enumerate(picks)]

def timing(n:int, seed:int, name:str)->list[dict]:
    "Half of them need a tool."
    r = np.random.default_rng(seed); need = queries(n, seed, name)
    return [{"sample_id": f"{name}{k}", "task": "timing", "query": s["query"] if k % 2 else str(r.choice(FRAMES)).format(r.choice(TALK)), "gold": bool(k % 2)} for k, s in enumerate(need)]

@functools.cache
def world()->Path:
    "A folder with the user's files, and a vector cache of its own."
    w = Path(tempfile.mkdtemp(prefix="sage-cli-")); atexit.register(shutil.rmtree, w, ignore_errors=True)
    os.environ["SAGE_CACHE"] = str(w/"cache"); os.environ["OMP_NUM_THREADS"] = "1"
    import torch; torch.set_num_threads(1)
    lines(w/"tools.jsonl", tool_rows()); lines(w/"stream.jsonl", queries(120, 0, "a")); lines(w/"test.jsonl", queries(48, 1, "t")); lines(w/"dev.jsonl", queries(24, 2, "d"))
    mixed = [x for pair in zip(queries(60, 3, "m"), timing(60, 4, "g")) for x in pair]
    lines(w/"mixed.jsonl", mixed); lines(w/"judge.jsonl", timing(40, 5, "j"))
    return w

def call(*args)->tuple[int, str, str]:
    "`sage-bench` in this process: exit code, standard output, standard error."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning) # Python itself would say the same line once only
        try: code = main([str(a) for a in args])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

@functools.cache
def model()->Path:
    "One trained SAGE_plus for everybody; nobody changes it."
    w = world(); code, _, err = call("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--method", "SAGE_plus", "--out", w/"model")
    assert (code, err) == (0, "")
    return w/"model"

@pytest.fixture(scope="session")
def w()->Path: return world()

@pytest.fixture(scope="session")
def trained(w)->Path: return model()

@functools.cache
def one_backbone():
    from sage_repro.model.backbone import load_backbone
    world(); return load_backbone()

@pytest.fixture
def warm(monkeypatch):
    "The frozen backbone is loaded once; what trains its backbone still gets a fresh one."
    import sage_repro.agents.agent, sage_repro.model.backbone as b
    real = b.load_backbone
    def load(*a, **kw): return one_backbone() if kw.get("mode", (a + ("frozen",)*2)[1]) == "frozen" else real(*a, **kw)
    one_backbone(); monkeypatch.setattr(b, "load_backbone", load); monkeypatch.setattr(sage_repro.agents.agent, "load_backbone", load)

def value(metrics, method, name, task="selection", seed=None):
    [m] = [m for m in metrics if (m["method"], m["name"], m["task"], m["seed"]) == (method, name, task, seed)]
    return m["value"]

# ---- starting

def test_help_and_list_answer_at_once_and_without_torch(w):
    code = "import sys; from sage_repro.paper.cli import main; main([{!r}]) if {!r} == 'list' else None; print(sorted({{'torch', 'transformers', 'pandas', 'sklearn'}} & set(sys.modules)), file=sys.stderr)"
    for what in ("list", "import"):
        p = subprocess.run([sys.executable, "-c", code.format(what, what)], capture_output=True, text=True, cwd=w)
        assert p.returncode == 0 and p.stderr.splitlines()[-1] == "[]", p.stderr
    for args in (["--help"], ["list"], ["train", "--help"]):
        took = []
        for _ in range(3): t0 = time.perf_counter(); p = subprocess.run([SAGE_BENCH, *args], capture_output=True, text=True, cwd=w); took.append(time.perf_counter() - t0)
        assert p.returncode == 0 and min(took) < 1, (args, took)

def test_list_names_every_method_and_the_registry_is_what_can_be_built():
    from sage_repro.agents.planning import PLANNERS
    from sage_repro.agents.selection import UNTRAINED
    from sage_repro.agents.timing import JUDGES
    from sage_repro.stream.methods import METHODS
    code, out, _ = call("list", "methods"); first = [l.split()[0] for l in out.splitlines()]
    assert code == 0 and first == list(REGISTRY)
    kinds = lambda k: {e.id for e in REGISTRY.values() if e.kind == k}
    assert kinds("trained") == set(METHODS) and kinds("baseline") == {*UNTRAINED, *PLANNERS, *JUDGES}
    assert all(e.not_run for e in REGISTRY.values() if e.kind == "llm")

def test_a_closed_pipe_is_no_error(w):
    p = subprocess.run(f"'{SAGE_BENCH}' list | head -n 1", shell=True, capture_output=True, text=True, cwd=w)
    assert p.stdout.startswith("chance") and p.stderr == ""

# ---- eval

def check_metrics(metrics, n):
    assert isinstance(metrics, list) and metrics
    for m in metrics:
        assert set(m) == {"method", "task", "name", "value", "low", "high", "n", "seed"}, m
        assert 0 <= m["value"] <= 1 and m["n"] == n
        if m["seed"] is None: assert 0 <= m["low"] <= m["value"] <= m["high"] <= 1, m
        else: assert m["low"] is m["high"] is None
    key = [(m["method"], m["task"], m["name"], m["seed"]) for m in metrics]
    assert len(set(key)) == len(key), "one row a seed and one aggregate"
    assert {k[:3] for k in key if k[3] is None} == {k[:3] for k in key if k[3] is not None}

@pytest.fixture(scope="session")
def evaluated(w):
    code, out, err = call("eval", "--tools", w/"tools.jsonl", "--samples", w/"test.jsonl", "--train", w/"stream.jsonl", "--methods", "keyword,embedding,hybrid_rrf,memoriser,chance,SAGE_plus", "--seeds", "0,1,2", "--out", w/"eval")
    assert (code, err) == (0, ""), err
    return json.loads((w/"eval"/"metrics.json").read_text()), read(w/"eval"/"predictions.jsonl"), out

def test_eval_writes_the_metrics_of_the_specification(evaluated):
    metrics, rows, out = evaluated
    check_metrics(metrics, 48)
    assert {m["name"] for m in metrics} == {"top1", "top5", "mrr", "recall@5", "precision@5", "ndcg@5"}
    seeds = {}
    for m in metrics: seeds.setdefault(m["method"], set()).add(m["seed"])
    assert seeds == {m: {0, None} for m in ("selector.keyword", "selector.embedding", "selector.hybrid", "memoriser")} | {m: {0, 1, 2, None} for m in ("chance", "SAGE_plus")}
    assert "SAGE_plus" in out and "n = 48" in out
    assert value(metrics, "chance", "top1") < .25 < value(metrics, "selector.embedding", "top1") < value(metrics, "SAGE_plus", "top1"), "learning helps here"

def test_predictions_are_one_line_a_sample_method_and_seed_and_give_the_metrics_by_hand(evaluated, w):
    metrics, rows, _ = evaluated
    key = [(r["sample_id"], r["method"], r["seed"]) for r in rows]
    assert len(key) == len(set(key)) == 48*(4 + 3 + 3)
    gold = {s["sample_id"]: s["gold"][0] for s in read(w/"test.jsonl")}
    for method, seed in {(k[1], k[2]) for k in key}:
        mine = [r for r in rows if (r["method"], r["seed"]) == (method, seed)]
        assert [r["sample_id"] for r in mine] == list(gold)
        rank = np.array([r["prediction"].index(gold[r["sample_id"]]) + 1 if gold[r["sample_id"]] in r["prediction"] else 99 for r in mine])
        assert value(metrics, method, "top1", seed=seed) == pytest.approx(np.mean(rank == 1)) and value(metrics, method, "top5", seed=seed) == pytest.approx(np.mean(rank <= 5))
        assert all(r["ranks"] == [k] for r, k in zip(mine, rank) if k < 99) and value(metrics, method, "mrr", seed=seed) == pytest.approx(np.mean([1/r["ranks"][0] for r in mine]))
    per = [value(metrics, "SAGE_plus", "mrr", seed=s) for s in (0, 1, 2)]
    assert value(metrics, "SAGE_plus", "mrr") == pytest.approx(np.mean(per))

def test_eval_says_what_it_did_not_run(w, tmp_path):
    mixed = lines(tmp_path/"s.jsonl", [*queries(5, 0, "a"), *timing(4, 0, "b"), {"sample_id": "p", "task": "planning", "query": "q", "gold": [{"tool_id": "fx"}]}])
    code, _, err = call("eval", "--tools", w/"tools.jsonl", "--samples", mixed, "--methods", "keyword,gorilla", "--out", tmp_path/"o")
    assert code == 0 and "1 planning samples: not run" in err and "4 timing samples: not run" in err and "selector.gorilla: not run: needs a language-model server" in err
    assert {r["method"] for r in read(tmp_path/"o"/"predictions.jsonl")} == {"selector.keyword"}

def test_candidates_alone_are_ranked(w, tmp_path):
    s = [q | {"candidates": [*dict.fromkeys([q["gold"][0], "fx", "sky"])]} for q in queries(12, 7, "c")]
    code, *_ = call("eval", "--tools", w/"tools.jsonl", "--samples", lines(tmp_path/"s.jsonl", s), "--methods", "keyword,chance", "--out", tmp_path/"o")
    assert code == 0
    for r in read(tmp_path/"o"/"predictions.jsonl"): assert sorted(r["prediction"]) == sorted(next(q["candidates"] for q in s if q["sample_id"] == r["sample_id"]))

# ---- train, then eval --model

def test_a_model_holds_its_record(trained, w):
    r = json.loads((trained/"record.json").read_text())
    assert r["method"] == "SAGE_plus" and r["seed"] == 0 and r["n_stream"] == r["scored"] == 120
    assert 0 < r["distinct_trained"] <= r["gradient_visits"] <= .35*120 + 1
    assert set(r["seconds"]) == {"encoding", "scoring", "training", "replay", "lookup"} and all(x >= 0 for x in r["seconds"].values()) and r["seconds"]["encoding"] > 0 < r["seconds"]["training"]
    assert sum(r["seconds"].values()) <= r["wall_seconds"] and r["peak_memory_mb"] > 100
    assert r["config"]["id"] == "SAGE_plus" and r["config"]["budget"] == .35
    import hashlib
    assert r["digests"]["stream"] == hashlib.sha256((w/"stream.jsonl").read_bytes()).hexdigest() and r["digests"]["tools"] == hashlib.sha256((w/"tools.jsonl").read_bytes()).hexdigest()
    assert {p.name for p in trained.iterdir()} == {"record.json", "model.json", "state.json", "state.safetensors", "tools.jsonl"}
    assert not list(w.glob(".*")), "nothing is left beside it"

@pytest.fixture(scope="session")
def by_model(trained, w):
    code, _, err = call("eval", "--model", trained, "--samples", w/"test.jsonl", "--out", w/"eval-model")
    assert (code, err) == (0, "")
    return json.loads((w/"eval-model"/"metrics.json").read_text()), read(w/"eval-model"/"predictions.jsonl")

def test_the_model_brings_its_tools_and_has_learned(by_model):
    metrics, rows = by_model
    check_metrics(metrics, 48)
    assert len(rows) == 48 and {(r["method"], r["seed"]) for r in rows} == {("SAGE_plus", 0)}
    assert value(metrics, "SAGE_plus", "top1") > .7

def test_the_api_ranks_as_the_command_line_does(trained, by_model, w):
    from sage_repro.agents.agent import load
    agent = load(trained, one_backbone()); said = {s["sample_id"]: s["query"] for s in read(w/"test.jsonl")}
    for r in by_model[1][:12]: assert [t for t, _ in agent.rank(said[r["sample_id"]], 10)] == r["prediction"]

def test_a_model_ranks_the_library_it_is_asked_about(trained, w, tmp_path, warm):
    "A tool that the model has not met is ranked by its text; one that is not in the file is never returned."
    tools = [t for t in tool_rows() if t["tool_id"] != "lamp"] + [{"tool_id": "star", "name": "starChart", "description": "Shows stars and planets of the night sky."}]
    s = [{"sample_id": "1", "task": "selection", "query": "which planets are in the night sky", "gold": ["star"]}, {"sample_id": "2", "task": "selection", "query": "lights out", "gold": ["sky"]}]
    code, *_ = call("eval", "--model", trained, "--tools", lines(tmp_path/"t.jsonl", tools), "--samples", lines(tmp_path/"s.jsonl", s), "--out", tmp_path/"o")
    a, b = read(tmp_path/"o"/"predictions.jsonl")
    assert code == 0 and a["prediction"][0] == "star" and "lamp" not in a["prediction"] + b["prediction"] and b["ranks"][0] is not None

def test_timing_is_learned_from_the_stream_and_judged(w, tmp_path, warm):
    from sklearn.metrics import accuracy_score, f1_score
    code, *_ = call("train", "--tools", w/"tools.jsonl", "--stream", w/"mixed.jsonl", "--method", "SAGE_plus", "--out", tmp_path/"m"); assert code == 0
    code, *_ = call("eval", "--model", tmp_path/"m", "--samples", w/"judge.jsonl", "--out", tmp_path/"o"); assert code == 0
    metrics, rows = json.loads((tmp_path/"o"/"metrics.json").read_text()), read(tmp_path/"o"/"predictions.jsonl")
    check_metrics(metrics, 40); gold = [s["gold"] for s in read(w/"judge.jsonl")]; said = [r["prediction"] for r in rows]
    assert all(0 <= r["scores"] <= 1 and r["prediction"] == (r["scores"] > .5) for r in rows)
    assert value(metrics, "SAGE_plus", "accuracy", "timing") == accuracy_score(gold, said) > .8 and value(metrics, "SAGE_plus", "f1", "timing") == pytest.approx(f1_score(gold, said))

def test_a_model_without_timing_says_so(trained, w, tmp_path, warm):
    code, _, err = call("eval", "--model", trained, "--samples", w/"judge.jsonl", "--out", tmp_path/"o")
    assert code == 2 and "saw no timing samples" in err and not (tmp_path/"o").exists()

def plans(n:int, seed:int, name:str, **more)->list[dict]:
    "Two tools, the second after the first."
    a, b = queries(n, seed, name), queries(n, seed + 100, name)
    return [{"sample_id": s["sample_id"], "task": "planning", "query": f"{s['query']} and then {t['query']}", "gold": [{"tool_id": s["gold"][0]}, {"tool_id": t["gold"][0], "depends_on": [0]}]} | more for s, t in zip(a, b)]

@functools.cache
def planning_model()->Path:
    "One SAGE_full that learned all three tasks."
    w = world(); lines(w/"three.jsonl", [x for three in zip(queries(60, 3, "m"), timing(60, 4, "g"), plans(60, 6, "p")) for x in three])
    code, _, err = call("train", "--tools", w/"tools.jsonl", "--stream", w/"three.jsonl", "--method", "SAGE_full", "--out", w/"planning-model")
    assert (code, err) == (0, "")
    return w/"planning-model"

def test_a_model_plans_with_the_candidates(w, tmp_path, warm):
    "A file of plans alone will do, and nobody says that they were not run."
    ids = [i for i, *_ in TOOLS]; asked = [s | {"candidates": [*dict.fromkeys([p["tool_id"] for p in s["gold"]] + [ids[k % 12]])]} for k, s in enumerate(plans(24, 8, "c"))]
    code, _, err = call("eval", "--model", planning_model(), "--samples", lines(tmp_path/"s.jsonl", asked), "--out", tmp_path/"o")
    assert (code, err) == (0, ""); rows = read(tmp_path/"o"/"predictions.jsonl"); assert len(rows) == 24
    for s, r in zip(asked, rows): assert {p["tool_id"] for p in r["prediction"]} <= set(s["candidates"])
    check_metrics(json.loads((tmp_path/"o"/"metrics.json").read_text()), 24)
    code, _, err = call("eval", "--model", planning_model(), "--methods", "keyword", "--samples", tmp_path/"s.jsonl", "--out", tmp_path/"p")
    assert code == 0 and "selector.keyword: not run: the file holds no selection samples" in err

def test_a_model_plans_and_judges_with_the_library_it_is_asked_about(w, tmp_path, warm):
    "Without selection samples, too."
    from sage_repro.paper.cli import _ask_model, _load_model
    from sage_repro.bench.schema import load_samples
    asked = lines(tmp_path/"s.jsonl", [s | {"gold": [{"tool_id": "fx"}]} for s in plans(24, 9, "l")]); calls = lambda out: [p["tool_id"] for r in read(tmp_path/out/"predictions.jsonl") for p in r["prediction"]]
    assert call("eval", "--model", planning_model(), "--samples", asked, "--out", tmp_path/"all")[0] == 0
    gone = max((c for c in calls("all") if c != "fx"), key=calls("all").count); few = [t for t in tool_rows() if t["tool_id"] != gone]; left = {t["tool_id"] for t in few}
    code, _, err = call("eval", "--model", planning_model(), "--tools", lines(tmp_path/"t.jsonl", few), "--samples", asked, "--out", tmp_path/"o")
    assert (code, err) == (0, "") and set(calls("o")) <= left
    model = _load_model(planning_model(), one_backbone()); rows, said = _ask_model(model, load_tools(tmp_path/"t.jsonl"), load_samples(w/"judge.jsonl"))
    assert {model[0].library.tools[r].tool_id for r in model[0].library.live} == left and len(rows) == 40 and said == []

def test_a_model_without_plans_says_so(trained, w, tmp_path, warm):
    code, _, err = call("eval", "--model", trained, "--samples", lines(tmp_path/"s.jsonl", plans(4, 0, "a")), "--out", tmp_path/"o")
    assert code == 2 and "learned from no plans" in err and not (tmp_path/"o").exists()

def test_planner_and_judge_are_trained_for_each_seed(w, tmp_path, warm):
    lines(tmp_path/"train.jsonl", [*timing(60, 4, "g"), *plans(40, 6, "p")]); lines(tmp_path/"s.jsonl", [*timing(24, 5, "j"), *plans(24, 8, "c")])
    base = ("eval", "--tools", w/"tools.jsonl", "--samples", tmp_path/"s.jsonl", "--train", tmp_path/"train.jsonl", "--methods", "model.planner,model.timing")
    assert call(*base, "--seeds", "0,1", "--out", tmp_path/"both")[0] == call(*base, "--seed", "1", "--out", tmp_path/"one")[0] == 0
    check_metrics(json.loads((tmp_path/"both"/"metrics.json").read_text()), 24); both = read(tmp_path/"both"/"predictions.jsonl")
    of = lambda method, seed: [r | {"seed": None} for r in both if (r["method"], r["seed"]) == (method, seed)]
    for method in ("model.planner", "model.timing"): assert len(of(method, 0)) == len(of(method, 1)) == 24 and of(method, 0) != of(method, 1)
    assert [r for r in both if r["seed"] == 1] == read(tmp_path/"one"/"predictions.jsonl")

@pytest.mark.parametrize("name", [e.id for e in REGISTRY.values() if e.kind == "trained" and e.id != "A_lora"])
def test_every_trained_method_trains_and_ranks(name, w, tmp_path, warm):
    code, out, err = call("train", "--tools", w/"tools.jsonl", "--stream", w/"mixed.jsonl", "--method", name, "--out", tmp_path/"m")
    from sage_repro.stream.methods import METHODS
    joint = METHODS[name].pairs is not None; n = 120 if joint else 60 # one network for all tasks: timing samples arrive like the others
    assert (code, err) == (0, "") and f"{name}: {n} samples" in out
    r = json.loads((tmp_path/"m"/"record.json").read_text())
    assert r["method"] == name and r["n_stream"] == n
    if METHODS[name].gate == "none": assert r["distinct_trained"] == 0
    else: assert r["gradient_visits"] > (20 if joint else 240), "by itself, the timing head makes 4 steps on each of 60 samples"
    code, *_ = call("eval", "--model", tmp_path/"m", "--samples", w/"dev.jsonl", "--out", tmp_path/"o")
    assert code == 0 and value(json.loads((tmp_path/"o"/"metrics.json").read_text()), name, "mrr") > .3

def test_lora_trains_its_backbone_and_comes_back(w, tmp_path):
    few = lines(tmp_path/"s.jsonl", queries(40, 0, "a"))
    code, _, err = call("train", "--tools", w/"tools.jsonl", "--stream", few, "--method", "A_lora", "--out", tmp_path/"m"); assert (code, err) == (0, "")
    assert "lora_A" in (tmp_path/"m"/"state.json").read_text()
    code, *_ = call("eval", "--model", tmp_path/"m", "--samples", w/"dev.jsonl", "--out", tmp_path/"o")
    assert code == 0 and value(json.loads((tmp_path/"o"/"metrics.json").read_text()), "A_lora", "mrr") > .3

def test_lora_starts_afresh_for_each_seed(w, tmp_path):
    "What seed 1 finds does not depend on whether seed 0 was trained before it."
    few = lines(tmp_path/"s.jsonl", queries(16, 0, "a")); base = ("eval", "--tools", w/"tools.jsonl", "--samples", w/"dev.jsonl", "--train", few, "--methods", "A_lora")
    assert call(*base, "--seeds", "0,1", "--out", tmp_path/"both")[0] == call(*base, "--seeds", "1", "--out", tmp_path/"one")[0] == 0
    assert [r for r in read(tmp_path/"both"/"predictions.jsonl") if r["seed"] == 1] == read(tmp_path/"one"/"predictions.jsonl")

def test_a_seed_repeats_and_another_order_differs(w, tmp_path, warm):
    def run(name, *more):
        assert call("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--method", "SAGE_full", "--out", tmp_path/name, *more)[0] == 0
        assert call("eval", "--model", tmp_path/name, "--samples", w/"test.jsonl", "--out", tmp_path/f"{name}-o")[0] == 0
        return (tmp_path/f"{name}-o"/"predictions.jsonl").read_bytes(), (tmp_path/name/"state.safetensors").read_bytes(), json.loads((tmp_path/name/"record.json").read_text())["evidence"]["trained_on"]
    a, b, c, d = run("a", "--shuffle"), run("b", "--shuffle"), run("c", "--shuffle", "--seed", "1"), run("d")
    assert a == b
    assert all(x != y for x, y in zip(a, c)) and a[1] != d[1]

def test_dev_chooses_the_learning_rate(w, tmp_path, warm):
    base = ("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--method", "one_pass", "--dev", w/"dev.jsonl", "--out", tmp_path/"m")
    code, out, _ = call(*base); r = json.loads((tmp_path/"m"/"record.json").read_text()); tuned = r["tuned_on_dev"]
    assert code == 0 and "chosen" in out and len(tuned["tried"]) == 3 and r["config"]["lr"] == tuned["chosen"] == float(max(tuned["tried"], key=tuned["tried"].get)) and r["tuning_seconds"] > 0
    code, _, err = call(*base, "--lr", "0.001")
    assert code == 2 and "--lr" in err

def test_budget_is_kept_and_refused_where_there_is_no_gate(w, tmp_path, warm):
    base = ("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--budget", "0.1")
    assert call(*base, "--method", "SAGE_plus", "--out", tmp_path/"m")[0] == 0 and json.loads((tmp_path/"m"/"record.json").read_text())["gradient_visits"] <= 13
    code, _, err = call(*base, "--method", "one_pass", "--out", tmp_path/"n")
    assert code == 2 and "has none" in err and not (tmp_path/"n").exists()

def test_events_change_the_library_while_it_learns(w, tmp_path, warm):
    new = {"tool_id": "star", "name": "starChart", "description": "Shows stars and planets.", "maker": "ann"}
    s = [*queries(30, 0, "a"), {"event": "add", "tool": new}, *[{"sample_id": f"x{i}", "task": "selection", "query": f"what shines up there, number {i}", "gold": ["star"]} for i in range(30)], {"event": "retire", "tool": {"tool_id": "tax"}}]
    code, _, err = call("train", "--tools", w/"tools.jsonl", "--stream", lines(tmp_path/"s.jsonl", s), "--method", "SAGE_plus", "--out", tmp_path/"m"); assert (code, err) == (0, "")
    t = [{"sample_id": "q", "task": "selection", "query": "what shines up there tonight", "gold": ["star"]}]
    code, *_ = call("eval", "--model", tmp_path/"m", "--samples", lines(tmp_path/"t.jsonl", t), "--out", tmp_path/"o"); [r] = read(tmp_path/"o"/"predictions.jsonl")
    assert code == 0 and r["prediction"][0] == "star" and "tax" not in r["prediction"]
    code, _, err = call("train", "--tools", w/"tools.jsonl", "--stream", tmp_path/"s.jsonl", "--method", "A_baseline", "--out", tmp_path/"n")
    assert code == 2 and "streaming method" in err and not (tmp_path/"n").exists()

# ---- keys of the user's own

def test_unknown_keys_survive_and_are_warned_about_once(w, tmp_path, warm):
    tools = [t | {"owner": "ann", "note": None} for t in tool_rows()]; s = [q | {"ticket": 7} for q in queries(40, 0, "a")]
    lines(tmp_path/"t.jsonl", tools); lines(tmp_path/"s.jsonl", s)
    code, _, err = call("train", "--tools", tmp_path/"t.jsonl", "--stream", tmp_path/"s.jsonl", "--method", "one_pass", "--out", tmp_path/"m")
    assert code == 0 and all(err.count(f"unknown key '{k}'") == 1 for k in ("owner", "note", "ticket")) and len(err.splitlines()) == 3
    kept = read(tmp_path/"m"/"tools.jsonl")
    assert [t["owner"] for t in kept] == ["ann"]*12 and all("note" in t and t["note"] is None for t in kept)

# ---- tools of other people, and checking

OPENAI = [{"type": "function", "function": {"name": n, "description": d, "parameters": {"type": "object", "properties": {"q": {"type": "string", "default": None}}}}} for _, n, d, _ in TOOLS]
MCP = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": n, "description": d, "inputSchema": {"type": "object", "properties": {"q": {"type": "string", "default": None}}}} for _, n, d, _ in TOOLS]}}

def test_import_tools_from_openai_and_mcp(tmp_path):
    for name, obj in (("openai", OPENAI), ("openai-object", {"tools": OPENAI}), ("mcp", MCP), ("mcp-tools", MCP["result"])):
        (tmp_path/f"{name}.json").write_text(json.dumps(obj, indent=2), encoding="utf-8-sig" if name == "mcp" else "utf-8")
        code, out, err = call("import-tools", tmp_path/f"{name}.json", "--out", tmp_path/f"{name}.jsonl", "--prefix", "srv.")
        assert (code, err) == (0, "") and "wrote 12 tools" in out
    first = read(tmp_path/"openai.jsonl")
    assert all(read(tmp_path/f"{n}.jsonl") == first for n in ("openai-object", "mcp", "mcp-tools"))
    assert first[0]["tool_id"] == "srv.getForecast" and first[0]["parameters"] == OPENAI[0]["function"]["parameters"], "a null in a schema stays"
    assert len(load_tools(tmp_path/"mcp.jsonl")) == 12
    code, out, _ = call("validate", "--tools", tmp_path/"mcp.jsonl")
    assert code == 0 and "12 tools, well formed" in out

def test_validate_counts(w):
    code, out, err = call("validate", "--tools", w/"tools.jsonl", "--samples", w/"stream.jsonl", w/"mixed.jsonl")
    assert (code, err) == (0, "") and "12 tools" in out and out.count("120 records, well formed") == 2

# ---- the five-line API, on the real backbone

def test_the_api_in_five_lines(w, tmp_path):
    from sage_repro.agents.agent import Agent, load
    agent = Agent.new(w/"tools.jsonl")
    assert agent.rank("what is the weather to come")[0][0] == "sky", "it ranks before it has learned anything"
    for s in read(w/"stream.jsonl"): agent.feedback(s["query"], s["gold"][0])
    for s in timing(40, 9, "x"):
        if not s["gold"]: agent.feedback(s["query"], False)
    again = load(agent.settle().save(tmp_path/"mine"))
    test = read(w/"test.jsonl"); hit = np.mean([again.rank(s["query"], 1)[0][0] == s["gold"][0] for s in test])
    assert hit > .7 and again.trainer.costs.arrived == 120
    top = again.rank("is it going to pour", 5); assert top[0][0] == "sky" and top == agent.rank("is it going to pour", 5) and len(top) == 5 and sum(p for _, p in again.rank("x y", 12)) == pytest.approx(1, abs=1e-5)
    assert again.judge("how many yen for a hundred") > .5 > again.judge("tell me a joke"), "a tool that was named also says that one was needed"
    plan = again.plan("find the last connection home and then put on something loud")
    assert [p.tool_id for p in plan] == ["rail", "song"] and plan[1].depends_on == (0,)

def test_the_api_refuses_what_it_cannot_use(trained):
    from sage_repro.agents.agent import Agent, load
    a = load(trained, one_backbone())
    for wrong in (lambda: a.rank(""), lambda: a.rank("  "), lambda: a.rank(None), lambda: a.rank("q", 0), lambda: a.feedback("q", "nope"), lambda: a.feedback("q", []), lambda: a.feedback("q", None), lambda: a.feedback("q", 5),
                  lambda: a.judge("q"), lambda: a.retire("nope"), lambda: a.save(trained.parent), lambda: Agent.new([], backbone=one_backbone()), lambda: Agent.new(a.tools, "A_baseline", one_backbone()), lambda: Agent.new(a.tools, "magic", one_backbone())):
        with pytest.raises((ValueError, FileExistsError)): wrong()
    assert a.trainer.costs.arrived == 120, "nothing was learned from them"

def test_questions_after_loading_keep_their_own_numbers(trained):
    from sage_repro.agents.agent import load
    a = load(trained, one_backbone()); n = len(a.trainer.memory)
    for i in range(3): a.feedback(f"one more {i}", "fx")
    keys = a.trainer.memory.key[n:]
    assert len(set(keys)) == 3 and not set(keys) & set(load(trained, one_backbone()).trainer.memory.key)
