"Every experiment notebook runs at smoke scale, says what it used, and writes to scratch only."
import json
import re

import pytest

from sage_repro.core.config import repo_root
from sage_repro.paper.driver import check_parameters, effective, experiments, run_experiment

ROOT = repo_root()


@pytest.mark.parametrize("name", sorted(experiments(ROOT)))
def test_notebook_runs_at_smoke_scale(name, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in (ROOT / "results" / "records").rglob("*") if p.is_file()}
    out = run_experiment(name, "smoke", out=tmp_path / "out.ipynb")
    assert effective(out)["scale"] == "smoke"
    assert before == {p: p.stat().st_mtime_ns for p in (ROOT / "results" / "records").rglob("*") if p.is_file()}, "a smoke run must not touch records"
    if name == "table2_challenges":
        record = json.loads((ROOT / "results" / "scratch" / "table2_challenges-smoke" / "record.json").read_text())
        assert record["status"] == "ok" and record["scale"] == "smoke" and len(record["metrics"]) > 100


@pytest.mark.parametrize("name,path", sorted(experiments(ROOT, tuning=True).items()))
def test_notebook_has_the_eight_parts(name, path):
    cells = json.loads(path.read_text())["cells"]
    text = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "markdown")
    assert "**Expected cost.**" in text
    parts = re.findall(r"^## (\w+)", text, re.M)
    assert parts == ["Parameters", "Imports", "Configuration", "Run", "Record", "Render", "Check"], parts
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert "scale" in check_parameters(path, {"scale": "smoke"})


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ValueError, match="has no parameter 'scal'"):
        run_experiment("table2_challenges", params={"scal": "smoke"})


def test_learning_rates_are_those_of_the_tuning_record():
    from sage_repro.core.record import load_record
    from sage_repro.paper.experiments import SAME_AS
    from sage_repro.stream.methods import METHODS
    from sage_repro.paper.experiments import TUNE_GRID, choose_rate
    record = load_record(ROOT / "results" / "records" / "tune_selection-quick")
    mrr = record.extra["dev_mrr"]
    best = {m: choose_rate({lr: mrr[f"{m}@{lr:g}"] for lr in TUNE_GRID}) for m in record.config["methods"]}
    want = {m: best[SAME_AS.get(m, m)] for m in METHODS if SAME_AS.get(m, m) in best}
    assert {m: METHODS[m].lr for m in want} == want and len(want) > 25


def test_methods_are_those_that_were_tuned():
    from dataclasses import asdict
    from sage_repro.core.record import load_record
    from sage_repro.stream.methods import METHODS
    strip = lambda m: {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in m.items() if k not in ("id", "title", "lr")}
    runs = load_record(ROOT / "results" / "records" / "tune_selection-quick").runs
    plain = lambda v: json.loads(json.dumps(v))
    changed = {x["method"] for x in runs if plain(strip(x["config"])) != plain(strip(asdict(METHODS[x["method"].split("@")[0]])))}
    assert not changed, f"these methods are no longer what was tuned; run `sage-bench run tune_selection`: {sorted(changed)}"


def test_lora_rates_are_those_of_the_tuning_record():
    from sage_repro.core.record import load_record
    from sage_repro.stream.cost import LORA_RATES, choose_lower
    record = load_record(ROOT / "results" / "records" / "tune_cost-quick")
    mrr, grid, arms = record.extra["dev_mrr"], record.config["grid"], record.extra["best"]
    best = {k: choose_lower({lr: mrr[f"{k}@{lr:g}"] for lr in grid}) for k in arms}
    assert {k: LORA_RATES.get(k, 1e-3) for k in best} == best and len(best) == 5
