"One network for three tasks: the experiment at smoke size, and a model that learned all three from a stream through the command line."
import json

import numpy as np
import pytest

from sage_repro.bench.schema import SelectionSample, TimingSample, Tool
from sage_repro.bench.sagebench import data_digest
from sage_repro.paper.joint import ARMS, JointConfig, beside, joint_data, joint_frame, joint_tasks, run_arm
from sage_repro.model.backbone import load_backbone


@pytest.fixture(scope="module")
def small():
    tools, data = joint_data("sagebench", "", 0, 100)
    keep = {t for s in data["train"] + data["test"] for t in ([] if s.task == "timing" else s.gold if s.task == "selection" else [p.tool_id for p in s.gold])}
    return [t for t in tools if t.tool_id in keep], data, load_backbone()


def test_arms_see_the_same_number_of_samples_and_differ(small):
    tools, data, backbone = small
    cfg = JointConfig(steps=12)
    units = {a: run_arm(a, tools, data["train"], data["test"][:60], backbone, 0, cfg) for a in ARMS}
    assert len({u["run"]["gradient_visits"] for u in units.values()}) == 1, "each task sees as many of its own samples, together or apart"
    said = {a: json.dumps([r for r in u["predictions"]], default=str).replace(a, "") for a, u in units.items()}
    assert len(set(said.values())) == len(ARMS)
    assert run_arm("joint", tools, data["train"], data["test"][:60], backbone, 0, cfg)["predictions"] == units["joint"]["predictions"], "a seed repeats"
    assert units["joint"]["run"]["task_weights"] == {"selection": 1., "timing": 1., "planning": 1.} != units["joint + GradNorm"]["run"]["task_weights"]


def test_the_experiment_at_smoke_scale():
    r, rows = joint_tasks("", "smoke", ("sagebench",), ("separate", "joint + cross-task + GradNorm"))
    assert not r.publishable and {p["task"] for p in rows} <= {"selection", "timing", "planning"} and r.extra["differences"]
    assert "query" not in json.dumps(rows[:50]), "ids and ranks only"
    assert len(joint_frame(r, "sagebench")) >= 2
    assert r.source["data_digest"] == data_digest(), "SAGE-Bench alone keeps the digest of its other records"


def test_the_timing_head_beside_is_trained_by_the_seed(small):
    tools, data, backbone = small; of = lambda part: [s for s in data[part] if s.task == "timing"][:40]
    said = [{u["run"]["method"]: [r["scores"] for r in u["predictions"]] for u in beside(of("train"), of("test"), tools, backbone, seed)} for seed in (0, 1, 1)]
    assert said[0]["model.timing"] != said[1]["model.timing"] == said[2]["model.timing"] and said[0]["timing.words"] == said[1]["timing.words"]


def test_sagebench_has_the_same_items_under_every_seed_and_is_drawn_so():
    "Five seeds of a method that draws nothing say no more about items than one."
    from sage_repro.core.stats import estimate
    from sage_repro.paper.joint import _rows, differences
    one = np.array([1.]*17 + [0.]*28); e = estimate(one)
    toy = {("sagebench", m, "planning / all / success"): [(s, x) for s in range(5)] for m, x in (("joint", one), ("separate", 0*one))}
    [m] = [m for m in _rows(toy) if m.seed is None and m.method == "joint"]; [d] = differences(toy)
    for low, high, n in ((m.low, m.high, m.n), (d["low"], d["high"], d["n"])): assert n == 45 and (low, high) == pytest.approx((e.low, e.high), abs=.03) and high - low > .2


def test_the_digest_names_the_data_that_were_used(monkeypatch):
    import sage_repro.bench.external as external
    tools = [Tool(tool_id=t, name=t, description=f"about {t}") for t in ("rain", "stocks")]; more = []
    sets = {"teval": lambda: external.Dataset("teval", tools[:1], []), "metatool": lambda: external.Dataset("metatool", tools, [TimingSample(sample_id=f"t{i}", query=f"q {i}", gold=i % 2 == 0) for i in range(40)] + more)}
    monkeypatch.setattr(external, "load_dataset", lambda name, *a, **k: sets[name]())
    run = lambda: joint_tasks("there", "smoke", ("public",), ())[0].source["data_digest"]
    a = run(); assert a == run() != data_digest()
    more.append(SelectionSample(sample_id="s", query="will it rain", gold=("rain",))); assert run() not in (a, data_digest())
