"Plans, timing pairs, dialogues, arrivals and changes as they are committed: what SAGE-Bench promises, recounted from the raw lines where that is possible."
from __future__ import annotations
import json, re
from collections import Counter
from itertools import combinations
import jsonschema, numpy as np, pytest
from sage_repro.bench import datacard, dialogues as dl, sagebench as sb, streams, tasks
from sage_repro.bench.metrics import planning_metrics
from sage_repro.bench.schema import PlanningSample, SelectionSample
from test_data import DATA, raw

SIZES = {"train": 210, "dev": 45, "test": 45}

@pytest.fixture(scope="module")
def lib(): return {t.tool_id: t for t in sb.load_library(reserve=True)}

@pytest.fixture(scope="module")
def live(lib): return [t for t in lib.values() if not t.reserve]

@pytest.fixture(scope="module")
def plans(): return {s: sb.load_sagebench(s, "planning") for s in SIZES}

@pytest.fixture(scope="module")
def timing(): return {s: sb.load_sagebench(s, "timing") for s in SIZES}

@pytest.fixture(scope="module")
def talks(): return sb.load_talks()

@pytest.fixture(scope="module")
def held(plans, timing): return [s for n in ("dev", "test") for s in plans[n] + timing[n]] + [s for n in ("dev", "test", "test_extended", "arrivals_test", "changed_test") for s in sb.load_sagebench(n)]

# ---- planning

def test_plan_sizes_steps_and_ids(plans, live):
    assert {s: len(L) for s, L in plans.items()} == SIZES
    every, known = [s for L in plans.values() for s in L], {t.tool_id for t in live}
    assert len({s.sample_id for s in every}) == 300 and all(2 <= len(s.gold) <= 8 and {g.tool_id for g in s.gold} <= known for s in every)
    assert {len(s.gold) for s in plans["test"]} >= {2, 3, 4, 5, 6} and all(Counter(s.difficulty for s in L).keys() == {"easy", "medium", "hard"} for L in plans.values())

def test_dependencies_are_real_and_justified(plans):
    rows = [r for s in SIZES for r in raw(f"planning/{s}.jsonl")]
    for r in rows:
        for i, g in enumerate(r["gold"]):
            assert bool(g.get("depends_on")) == bool(g.get("why")) and all(0 <= j < i for j in g.get("depends_on", [])), r["sample_id"]
    assert tasks.unjustified([s for L in plans.values() for s in L]) == []
    for name, L in plans.items():
        shapes = [tasks.plan_shape(s.gold) for s in L]; share = {k: np.mean([x[k] for x in shapes]) for k in shapes[0]}
        assert share["chain"] < .45 and share["join"] > .2 and share["fan"] > .2 and share["branches"] > .3, (name, share)

def test_most_test_sequences_are_new_and_memory_fails(plans):
    seen = {tuple(g["tool_id"] for g in r["gold"]) for r in raw("planning/train.jsonl")}
    new = [tuple(g["tool_id"] for g in r["gold"]) not in seen for r in raw("planning/test.jsonl")]
    assert new == tasks.unseen_sequences(plans["train"], plans["test"]) and .6 <= np.mean(new) < 1, "seen ones are there too, to be reported apart"
    m = planning_metrics(tasks.copy_nearest(plans["train"], plans["test"]), [s.gold for s in plans["test"]])
    assert m["sequence_match"].mean() < .1

def test_requests_give_nothing_away(plans, live):
    wide = [tasks.as_retrieval(s) for L in plans.values() for s in L]
    assert sb.tool_names_in(wide, live) == [] and sb.copied_runs(wide, live) == [] and sb.near_duplicates(plans) == [] and sb.duplicates(plans) == []

# ---- timing

def test_timing_sizes_balance_and_pairs(timing, lib):
    assert {s: len(L) for s, L in timing.items()} == SIZES and all(abs(2*sum(s.gold for s in L) - len(L)) <= 1 for L in timing.values())
    where = {}
    for name, L in timing.items():
        for s in L: where.setdefault(s.group, set()).add(name); assert (s.tool_id is not None) == s.gold and (s.tool_id is None or s.tool_id in lib)
    assert all(len(v) == 1 for v in where.values()), "a pair is never torn apart"
    by = Counter(s.group for L in timing.values() for s in L); assert Counter(by.values()) == {2: 149, 1: 2}
    assert {s.category for s in timing["train"]} == {t.category for t in lib.values()} and sb.duplicates(timing) == [] and sb.near_duplicates(timing) == []

def test_style_and_single_words_do_not_decide(timing):
    every = [s for L in timing.values() for s in L]; g = tasks.giveaway(every).set_index("judge"); most = max(np.mean([s.gold for s in every]), 1 - np.mean([s.gold for s in every]))
    for j in ("style, linear", "style, forest"): assert abs(g.loc[j, "by item"].mean - most) <= .05, g.loc[j].map(str)
    for j in ("bag of words", "words and pairs, TF-IDF"): assert max(g.loc[j, c].high for c in g.columns) < .85, g.loc[j].map(str)

def test_a_style_that_tells_is_found(timing):
    "The judges can see: with an exclamation mark on one side they are right."
    every = [s.model_copy(update={"query": s.query + "!"*s.gold}) for s in timing["train"]]
    assert tasks.giveaway(every, repeats=1, judges=("style, linear",))["by item"][0].mean > .95

# ---- dialogues

def test_dialogue_sizes_and_kinds(talks):
    assert len(talks) == 4000 == len({d.dialogue_id for d in talks}) and {d.kind for d in talks} == set(dl.KINDS)
    assert len({tasks.goal_of(d) for d in talks}) >= 2000 and len({c.function.name for d in talks for m in d.messages for c in m.tool_calls}) > 1000
    assert min(Counter(d.kind for d in talks).values()) >= 400 and np.mean([sum(m.role == "user" for m in d.messages) > 1 for d in talks]) > .3

def test_every_call_fits_its_schema_by_an_independent_reading(lib):
    "From the raw lines and the library itself, not from the tools a dialogue brings."
    by = {t.name: t for t in lib.values()}; n = 0
    for r in raw("dialogues/train.jsonl"):
        offered = {t["function"]["name"]: t["function"] for t in r["tools"]}
        for name, f in offered.items():
            if name != "find_tools": assert f["description"] == by[name].description and f["parameters"] == by[name].parameters, r["dialogue_id"]
        for m in r["messages"]:
            for c in m.get("tool_calls", []):
                f = c["function"]; n += 1
                if f["name"] == "find_tools": continue
                p = by[f["name"]].parameters; v = jsonschema.Draft202012Validator(p)
                assert v.is_valid(f["arguments"]) and f["arguments"].keys() <= p["properties"].keys(), (r["dialogue_id"], f)
    assert n > 4000

def test_no_two_dialogues_are_alike(talks):
    assert tasks.similar_dialogues(talks, .6) == [] and tasks.similar_dialogues(talks, .6, listings=False) == []

def test_alike_dialogues_would_be_found(talks):
    twin = talks[7].model_copy(update={"dialogue_id": "twin", "messages": (*talks[7].messages[:-1], talks[7].messages[-1].model_copy(update={"content": "Else."}))})
    assert [p[:2] for p in tasks.similar_dialogues([*talks[:200], twin])] == [(talks[7].dialogue_id, "twin")]

def test_dialogues_do_not_know_the_held_out_items(talks, held, plans):
    lessons = dl.dialogue_stream(talks)
    assert tasks.shared_plans([s for s in lessons if s.task == "planning"], plans["dev"] + plans["test"]) == []
    assert tasks.same_intent(lessons, held) == [] and sb.near_duplicates({"dialogues": lessons, "held out": held}) == []

def test_a_leaked_item_would_be_found(held, plans):
    leak = [s.model_copy(update={"sample_id": "leak"}) for s in (plans["test"][0],)]
    assert tasks.shared_plans(leak, plans["test"]) and tasks.same_intent(leak, held)[0][2] == pytest.approx(1)

def test_calls_use_what_came_before(talks):
    "In planning dialogues a step that depends on another is called after it, and each step once."
    for d in [d for d in talks if d.kind == "multi_step_planning"]:
        order, at = [], 0
        for m in d.messages:
            if m.tool_calls: order += [(c.function.name, at) for c in m.tool_calls]; at += 1
        assert len(order) == len(d.gold) and len({n for n, _ in order}) == len(order), d.dialogue_id

def test_arguments_come_from_the_conversation(talks):
    "Numbers of three and more digits in a call stand somewhere before it: in what was said or returned (dates, and sums of them, aside)."
    strange = total = 0
    for d in talks:
        before = ""
        for m in d.messages:
            for c in m.tool_calls:
                for x in re.findall(r"(?<![\d-])\d{3,}(?![\d-])", json.dumps(c.function.arguments)):
                    total += 1; strange += x not in re.sub(r"(?<=\d)[,. ](?=\d{3})", "", before)
            before += " " + (m.content or "")
    assert total > 1000 and strange/total < .35

def test_the_three_tasks_stream(talks):
    s = tasks.training_stream(); n = Counter(x.task for x in s)
    assert n["selection"] == 4480 and n["planning"] == 210 + sum(d.kind == "multi_step_planning" for d in talks) and n["timing"] == 210 + sum(d.kind == "timing_decision" for d in talks)
    assert len({x.sample_id for x in s}) == len(s) and tasks.training_stream(1) != s == tasks.training_stream(0) and {x.task for x in tasks.training_stream(tasks=("timing",))} == {"timing"}

def test_rows_go_through_a_chat_template(talks):
    "With a template in the form of today's models: calls and tools come out whole, nothing is added."
    from transformers.utils.chat_template_utils import render_jinja_template
    template = "{% for t in tools %}{{ t.function | tojson }}\n{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{% endfor %}</{{ m.role }}>\n{% endfor %}"
    d = next(d for d in talks if d.kind == "multi_step_planning"); [row] = dl.to_rows([d])
    text = render_jinja_template(conversations=[row["messages"]], tools=row["tools"], chat_template=template)[0][0]
    for m in d.messages:
        for c in m.tool_calls: assert json.dumps({"name": c.function.name, "arguments": c.function.arguments}, ensure_ascii=False) in text
    assert "null" not in text.split("<user>")[1].replace('"null"', "") or any("null" in (m.content or "") for m in d.messages)

def test_a_table_of_dialogues_is_what_went_in(talks):
    some = [next(d for d in talks if d.kind == k) for k in dl.KINDS]
    assert list(dl.to_dataset(some)) == dl.to_rows(some)

# ---- arrivals, changes, rounds

def test_arrivals_and_changes(lib, live):
    later = {s: sb.load_sagebench(s) for s in sb.LATER}; reserve = {t.tool_id for t in lib.values() if t.reserve}; changes = sb.load_changes()
    assert {s: len(L) for s, L in later.items()} == {"arrivals_stream": 450, "arrivals_test": 150, "changed_stream": 150, "changed_test": 50}
    assert {g for s in later["arrivals_test"] for g in s.gold} == {g for s in later["arrivals_stream"] for g in s.gold} == reserve
    new = {c.tool.tool_id for c in changes if c.function}; old = {c.tool.tool_id for c in changes if not c.function}
    assert len(new) == len(old) == 50 and not new & old and {g for s in later["changed_test"] for g in s.gold} == new
    for c in changes:
        was = lib[c.tool.tool_id]; assert c.tool.description != was.description and c.tool.category == was.category and (c.function or (c.tool.name, c.tool.parameters) == (was.name, was.parameters))
        assert (len(c.train), len(c.test)) == ((3, 1) if c.function else (0, 0))
    assert sb.near_duplicates({k: L for k, L in later.items()}) == [] and sb.tool_names_in(later["arrivals_stream"] + later["arrivals_test"], list(lib.values())) == []
    cards = [c.tool for c in changes if c.function]; assert sb.tool_names_in(later["changed_test"], cards) == [] and sb.copied_runs(later["changed_test"], cards) == []

@pytest.mark.parametrize("seed", [0, 1])
def test_rounds_of_sage_bench(seed, lib):
    rounds, tools = streams.sagebench_rounds(seed)
    assert [len(r.live) for r in rounds] == [1000, 1200, 1250, 1250] and [Counter(e.event for e in r.events) for r in rounds] == [{}, {"add": 200}, {"retire": 100, "add": 150}, {"update": 100}]
    gone = {e.tool_id for e in rounds[2].events if e.event == "retire"}; new = {c.tool.tool_id for c in sb.load_changes() if c.function}
    late = {lib[e.tool_id].category for e in rounds[1].events}; assert len(late) == 2 and not {lib[t].category for t in rounds[0].live} & late
    for i, r in enumerate(rounds):
        there = set(r.live); assert all(set(s.gold) <= there for s in r.stream + r.test) and len(r.stream) > 300
        assert (i < 2) or not gone & {g for s in r.stream + r.test for g in s.gold}
    asked = {g for s in rounds[3].test for g in s.gold if g in new}; assert asked == new and all(s.sample_id.startswith("sel-chg") for s in rounds[3].test + rounds[3].stream if s.gold[0] in new)
    assert not any(s.sample_id.startswith("sel-chg") for r in rounds[:3] for s in r.test + r.stream)
    ids = [s.sample_id for r in rounds for s in r.stream]; assert len(ids) == len(set(ids))

# ---- audits, recounted

def test_agreement_of_plans_and_timing_recounted(plans, timing):
    gold = {s.sample_id: s for L in plans.values() for s in L}
    for kind, every in (("planning", plans), ("timing", timing)):
        rows = [r for r in raw(f"audit/{kind}.jsonl") if not r.get("superseded")]; due = {s.sample_id for n in ("dev", "test") for s in every[n]}
        assert Counter(r["sample_id"] for r in rows) == Counter(due), "each item once"
        a = tasks.reading_agreement(kind).set_index("split"); assert a.n["all"] == 90 and a.rate["all"] >= .95
    yes = {s.sample_id: s.gold for n in ("dev", "test") for s in timing[n]}
    assert tasks.reading_agreement("timing").set_index("split").agree["all"] == sum(r["needs_tool"] == yes[r["sample_id"]] for r in raw("audit/timing.jsonl") if not r.get("superseded"))
    def agrees(r): # brute force: the same tools, each after what it needs
        g, p = gold[r["sample_id"]].gold, [s["tool_id"] for s in r["plan"]]
        return sorted(p) == sorted(x.tool_id for x in g) and all(p.index(g[j].tool_id) < p.index(x.tool_id) for x in g for j in x.depends_on)
    assert tasks.reading_agreement("planning").set_index("split").agree["all"] == sum(agrees(r) for r in raw("audit/planning.jsonl") if not r.get("superseded"))
    for r in raw("audit/planning.jsonl"): assert {g.tool_id for g in gold[r["sample_id"]].gold} <= set(r["candidates"]) and {s["tool_id"] for s in r["plan"]} <= set(r["candidates"])
    with pytest.raises(ValueError, match="round must be one that was read"): tasks.reading_agreement("timing", 9)
    with pytest.raises(ValueError, match="kind must be one of"): tasks.load_readings("people")

def test_later_items_were_read():
    rows = sb.load_audit("later"); gold = {s.sample_id: s.gold for n in ("arrivals_test", "changed_test") for s in sb.load_sagebench(n)}
    last = [r for r in rows if not r.superseded]; assert Counter(r.sample_id for r in last) == Counter(list(gold))
    assert np.mean([r.answer in gold[r.sample_id] for r in last]) >= .95 and all(set(gold[r.sample_id]) & set(r.candidates) for r in rows)

def test_dialogues_were_read(talks):
    rows, known = tasks.load_readings("dialogues"), {d.dialogue_id for d in talks}
    assert len(rows) >= 200 and {r.dialogue_id for r in rows} <= known and tasks.dialogue_verdicts().set_index("question").of.max() == sum(r.round == 1 for r in rows)

def test_cards_take_their_own_enums(lib):
    "A value that an enum names has the parameter's type."
    of = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    for t in lib.values():
        for p in t.parameters["properties"].values():
            for q in (p, p.get("items", {})): assert all(isinstance(v, of[q["type"]]) for v in q.get("enum", [])), (t.tool_id, q)
