"One network for three tasks: the experiment at smoke size, and a model that learned all three from a stream through the command line."
import json

import numpy as np
import pytest

from sage_repro.paper.joint import ARMS, JointConfig, joint_data, joint_frame, joint_tasks, run_arm
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
