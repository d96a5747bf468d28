"What holds for every input: hypothesis looks for the one for which it does not."
from __future__ import annotations
import json, tempfile, warnings
from pathlib import Path
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sage_repro.bench.library_stream import follow
from sage_repro.bench.metrics import gold_ranks, selection_metrics
from sage_repro.bench.schema import (MAX_DEPTH, DataError, LibraryEvent, PlanningSample, SelectionSample, TimingSample, Tool, import_tools, iter_stream, load_samples, load_tools, parse_record,
    query_text, read_jsonl, split_name, tool_text, write_jsonl)
from sage_repro.stream.importance import MeanGate, OnlineNormaliser, QuantileGate
from sage_repro.stream.memory import vote

settings.register_profile("kit", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
settings.load_profile("kit")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
word = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | finite | text, lambda v: st.lists(v, max_size=4) | st.dictionaries(text, v, max_size=4), max_leaves=12)
wild = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda v: st.lists(v, max_size=4) | st.dictionaries(st.sampled_from(["tool_id", "name", "sample_id", "query", "gold", "task", "event", "tool", "history", "candidates", "depends_on", "tools", "function", "parameters", "result"]) | st.text(max_size=8), v, max_size=6), max_leaves=20)
TASKS = st.sampled_from(["selection", "planning", "timing"])
near = st.fixed_dictionaries({"sample_id": st.just("a") | wild, "query": st.just("b") | wild, "task": TASKS | wild, "gold": st.sampled_from([["a"], True, [{"tool_id": "a"}]]) | wild}, optional={k: wild for k in ("history", "candidates", "unseen", "feedback", "event", "tool", "x")})
near_tool = st.fixed_dictionaries({"tool_id": st.just("a") | wild, "name": st.just("b") | wild, "description": st.just("c") | wild}, optional={"parameters": st.dictionaries(st.just("properties"), wild) | wild, "reserve": wild, "x": wild})
near_event = st.fixed_dictionaries({"event": st.sampled_from(["add", "retire", "update"]) | wild, "tool": near_tool | wild})
KNOWN = [Tool(tool_id="a", name="a", description="a"), Tool(tool_id="b", name="b", description="b")]

@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as d: yield Path(d, "x.jsonl")

def tried(f)->object:
    "The result, or None where it was refused as it should be: by a `DataError` of one line."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: return f()
        except DataError as e:
            assert "\n" not in str(e) and "expected " in str(e) and "; fix: " in str(e) and len(str(e)) < 2000
            str(e).encode()

def readers(p:Path):
    for f in (lambda: list(read_jsonl(p)), lambda: load_tools(p), lambda: load_samples(p, KNOWN), lambda: list(iter_stream(p)), lambda: list(follow(p, KNOWN, idle=0, poll=0))): yield tried(f)

# ---- whatever comes in

@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(place, raw): place.write_bytes(raw); list(readers(place))

bits = st.sampled_from([b'{"a": 1}', b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b" ", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\0", b"NaN", b"-Infinity", b"1e999", b"9"*5000, b"-0", b"1e5", b"[["*600, b"null", b"true", b'"task"', b'"selection"', b'"gold"', b'{"event": "add"}'])
@given(st.lists(bits, max_size=12))
def test_any_bits_of_json_are_read_or_refused(place, parts): place.write_bytes(b"".join(parts)); list(readers(place))

@given(st.lists(near | near_tool | near_event | wild, min_size=1, max_size=4))
def test_any_json_is_read_or_refused(place, rows):
    "What is accepted can be turned into text, and written and read again."
    place.write_text("".join(json.dumps(r) + "\n" for r in rows))
    _, tools, samples, stream, _ = readers(place)
    for t in tools or []: tool_text(t, parameters=True).encode(); split_name(t.name)
    for s in [*(samples or []), *(s for s in stream or [] if not isinstance(s, LibraryEvent))]: query_text(s).encode()
    for got, load in ((tools, load_tools), (samples, load_samples), (stream, lambda p: list(iter_stream(p)))):
        if got: write_jsonl(place, got); assert tried(lambda: load(place)) == got

@given(near | near_tool | near_event | wild.filter(lambda v: isinstance(v, dict)))
def test_parse_record_takes_any_object(obj): tried(lambda: parse_record(obj))

@given(wild | st.lists(near_tool | st.fixed_dictionaries({"type": st.just("function"), "function": near_tool}), max_size=4).flatmap(lambda v: st.sampled_from([v, {"tools": v}, {"result": {"tools": v}}])))
def test_import_tools_takes_any_json(obj):
    got = tried(lambda: import_tools(obj, "p."))
    if got: assert len({t.tool_id for t in got}) == len(got) and all(t.tool_id.startswith("p.") for t in got)

@given(st.integers(1, 400))
def test_nesting_has_one_limit(place, n):
    place.write_text('{"a": ' + "["*n + "]"*n + "}"); got = tried(lambda: list(read_jsonl(place)))
    assert (got is not None) == (n + 1 <= MAX_DEPTH)

# ---- what was written is read

extra = st.dictionaries(word.filter(lambda k: k not in {*Tool.model_fields, *SelectionSample.model_fields, *PlanningSample.model_fields, *TimingSample.model_fields, "event", "tool"} and not k.startswith(("model_", "_"))), plain, max_size=3)
message = st.fixed_dictionaries({"role": word}, optional={"content": st.none() | text, "tool_calls": plain})
common = dict(query=word, history=st.lists(message, max_size=2), difficulty=st.none() | text, unseen=st.booleans(), feedback=plain)
a_tool = st.builds(lambda x, **k: Tool(**k, **x), x=extra, tool_id=word, name=word, description=word, parameters=st.dictionaries(text, plain, max_size=3), reserve=st.just(False))

def sample_of(kind, x, golds, common): # sample ids are given by the test, so that they differ
    gold = {"selection": golds, "timing": len(golds) > 1, "planning": [{"tool_id": t, "depends_on": list(range(i))[:2], "why": "so"*i, "note": x} for i, t in enumerate(golds)]}[kind]
    return {"task": kind, "gold": gold, **common, **x}

a_sample = st.builds(sample_of, TASKS, extra, st.lists(word, min_size=1, max_size=3, unique=True), st.fixed_dictionaries(common))

@given(st.lists(a_tool, min_size=1, max_size=4, unique_by=lambda t: t.tool_id))
def test_tools_survive_a_round_trip(place, tools):
    write_jsonl(place, tools); back = tried(lambda: load_tools(place))
    assert back == tools and [t.model_extra for t in back] == [t.model_extra for t in tools]

@given(st.lists(a_sample, min_size=1, max_size=4))
def test_samples_survive_a_round_trip(place, rows):
    rows = [r | {"sample_id": str(i)} for i, r in enumerate(rows)]
    place.write_text("".join(json.dumps(r) + "\n" for r in rows)); first = tried(lambda: load_samples(place)); assert first
    write_jsonl(place, first); assert tried(lambda: load_samples(place)) == first
    for r, out in zip(rows, map(json.loads, place.read_text(encoding="utf-8").split("\n"))):
        for k, v in r.items(): assert out.get(k) == v or (v is None and k in SelectionSample.model_fields and k not in out) or k in ("history", "gold"), (k, v, out.get(k))
        for a, b in zip(r["history"], out["history"]): assert {"content": None, **a} == b

# ---- gates, votes, scales, ranks

amounts = st.floats(0, 1) | st.sampled_from([0., .5, 1.])
@given(st.floats(.01, 1), st.lists(st.lists(amounts, min_size=1, max_size=40), min_size=1, max_size=40), st.integers(1, 60))
def test_a_budget_is_never_exceeded_by_more_than_one(budget, batches, window):
    g, kept, seen = QuantileGate(budget, window=window), 0, 0
    for b in batches:
        keep = g.admit(np.array(b), .5); kept += int(keep.sum()); seen += len(b)
        assert keep.shape == (len(b),) and keep.dtype == bool and kept <= budget*seen + 1, (kept, budget*seen)
    assert g.kept == kept and g.seen == seen

@given(st.floats(.05, 1), st.sampled_from(["equal", "rising", "random"]), st.integers(0, 99))
def test_a_budget_is_spent_on_a_long_stream(budget, shape, seed):
    x = {"equal": np.full(3200, .5), "rising": np.linspace(0, 1, 3200), "random": np.random.default_rng(seed).random(3200)}[shape]; g = QuantileGate(budget)
    kept = sum(g.admit(b, .5).sum() for b in np.split(x, 100))
    assert kept <= budget*3200 + 1 and kept >= .9*budget*3200, (kept, budget*3200)

@given(st.lists(amounts, min_size=1, max_size=40), st.floats(.01, 1), st.floats(allow_nan=True))
def test_the_paper_s_gate_takes_any_mean(b, budget, mean):
    g = MeanGate(budget); keep = g.admit(np.array(b), mean)
    assert keep.shape == (len(b),) and .01 <= g.ratio <= 100

@given(st.integers(0, 2**30))
def test_votes_are_probabilities_or_nothing(seed):
    r = np.random.default_rng(seed); b, m, width, n, k = (int(r.integers(1, x)) for x in (5, 31, 4, 7, 41)); tau = r.choice([.001, .05, 1.])
    sim = (r.random((b, m))*2 - 1)*r.choice([1., 1e3]); gold = np.where(r.random((m, width)) < r.choice([0., .3, .3, 1.]), -1, r.integers(n, size=(m, width)))
    p = vote(sim, gold, n, k, tau); total = p.sum(1)
    assert p.shape == (b, n) and np.isfinite(p).all() and (p >= 0).all() and (np.isclose(total, 1) | (total == 0)).all()
    near = np.argsort(-sim, axis=1, kind="stable")[:, :k]
    for i in range(b): # the slow twin: one neighbour after the other
        w = np.exp((sim[i, near[i]] - sim[i].max())/tau); want = np.zeros(n)
        for j, x in zip(near[i], w):
            ok = gold[j][gold[j] >= 0]
            for t in ok: want[t] += x/len(ok)
        assert np.allclose(p[i], want/want.sum() if want.sum() > 0 else want, atol=1e-9)

@given(st.lists(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), min_size=1, max_size=20))
def test_a_normalised_value_lies_between_zero_and_one(batches):
    n = OnlineNormaliser()
    for b in batches:
        y = n(np.array(b)); assert ((0 <= y) & (y <= 1)).all()

@given(st.permutations([f"t{i}" for i in range(12)]), st.sets(st.sampled_from([f"t{i}" for i in range(14)]), min_size=1, max_size=5), st.integers(1, 12))
def test_metrics_are_rates_and_improve_with_the_rank(order, gold, cut):
    m = {k: float(v[0]) for k, v in selection_metrics([gold_ranks(order[:cut], tuple(gold))]).items()}
    assert all(0 <= v <= 1 + 1e-12 for v in m.values()) and m["top1"] <= m["mrr"] and m["top1"] <= m["top5"] and (m["recall@5"] > 0) == (m["top5"] == 1) == (m["ndcg@5"] > 0)
    first = min(gold); better = [first, *(t for t in order if t != first)]
    for k, v in selection_metrics([gold_ranks(better[:cut], tuple(gold))]).items():
        if k in ("top1", "mrr"): assert v[0] == 1
