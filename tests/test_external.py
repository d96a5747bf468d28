"Public data sets as their authors publish them, where they lie beside the project (SAGE_DATA_DIR, or a folder data/ next to the checkout); tiny files of our own stand in the notebooks."
from __future__ import annotations
import json, os
from pathlib import Path
import numpy as np, pytest
from sage_repro.bench.external import DataError, convert, folder_digest, load_dataset, source, sources, split_80_10_10
from sage_repro.bench.metrics import gold_ranks, top_k
from sage_repro.bench.schema import load_samples, load_tools, query_text, tool_text
from test_cli import call, one_backbone, warm  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parent.parent

def folder()->Path|None:
    if os.environ.get("SAGE_DATA_DIR"): return Path(os.environ["SAGE_DATA_DIR"])
    return next((p.parent for p in sorted(ROOT.parent.glob("*/data/metatool"))), None)

HERE = folder()
external = [pytest.mark.external, pytest.mark.skipif(HERE is None, reason="no public data sets beside the project; set SAGE_DATA_DIR to a folder that holds them")]
THERE = [pytest.param(s.name, marks=[*external, pytest.mark.skipif(HERE is None or not (HERE/s.name).is_dir(), reason=f"{s.name} is not there")]) for s in sources()]
SIZES = {"metatool": (199, 20544, 497, 1040), "stabletoolbench": (2479, 764, 0, 0), "bfcl": (1786, 1659, 731, 2224), "toolalpaca": (1507, 214, 208, 0), "acebench": (2307, 600, 0, 150), "teval": (50, 0, 553, 0),
         "nestful": (103, 0, 244, 0), "restbench": (82, 0, 157, 0), "taskbench": (100, 0, 0, 0), "apibank": (119, 0, 106, 692), "draft": (1006, 0, 0, 0)}

def test_every_set_says_what_it_is():
    for s in sources():
        assert s.licence and s.home.startswith("https://") and s.base.startswith("https://") and s.files and "20" in s.cite and callable(s.load)
    assert {s.name for s in sources()} >= {"metatool", "stabletoolbench", "bfcl", "apibank", "toolalpaca", "acebench", "toolace", "taskbench", "teval", "nestful", "restbench"}

def test_the_list_shows_licence_home_and_citation(capsys):
    code, out, _ = call("list", "datasets"); assert code == 0
    for s in sources(): assert s.licence in out and s.home in out and s.cite in out

@pytest.mark.parametrize("name", [s.name for s in sources()])
def test_what_is_not_there_is_said(name, tmp_path):
    with pytest.raises(DataError) as e: source(name).load(tmp_path)
    assert "fix:" in str(e.value) and str(tmp_path) in str(e.value)

def test_a_home_out_of_reach_is_said(tmp_path, monkeypatch, warm):
    "No network: one line with the address, and how to go on; nothing written."
    import urllib.request
    def refuse(*a, **k): raise OSError("Network is unreachable")
    monkeypatch.setattr(urllib.request, "urlopen", refuse); monkeypatch.setenv("SAGE_DATA_DIR", str(tmp_path/"cache"))
    code, out, err = call("eval", "--dataset", "teval", "--out", tmp_path/"o")
    assert code == 2 and "Network is unreachable" in err and "--data-dir" in err and not (tmp_path/"o").exists()
    code, out, err = call("eval", "--dataset", "all", "--out", tmp_path/"o"); assert code == 2 and err.count("not run") == len(sources()) and not (tmp_path/"o").exists()
    code, _, err = call("eval", "--dataset", "nothing", "--out", tmp_path/"o"); assert code == 2 and "expected one of" in err

@pytest.mark.parametrize("name", THERE)
def test_real_files_load(name, tmp_path):
    d = load_dataset(name, HERE); got = (len(d.tools), *(len(d.only(t).samples) for t in ("selection", "planning", "timing")))
    assert got == SIZES[name] and not any("another version" in n for n in d.notes)
    known = {t.tool_id for t in d.tools}; assert len(known) == len(d.tools) and len({s.sample_id for s in d.samples}) == len(d.samples)
    for s in d.samples:
        ids = s.gold if s.task == "selection" else [g.tool_id for g in s.gold] if s.task == "planning" else []
        assert set(ids) <= known
    parts = split_80_10_10(d.samples, 0); where = {}
    for k, L in parts.items():
        for s in L: assert where.setdefault(s.group or s.sample_id, k) == k
    if d.samples:
        out = convert(name, HERE, tmp_path/"o"); lib = load_tools(out/"tools.jsonl")
        assert sum(len(load_samples(out/f"{p}.jsonl", lib)) for p in parts) == len(d.samples)

@pytest.mark.parametrize("name", THERE)
def test_a_file_cut_short_is_refused_by_name(name, tmp_path):
    "Each file of a set, one after the other, loses its second half."
    import shutil
    s = source(name); there = [f for f in s.files if (HERE/name/f).is_file()]
    for f in there: (tmp_path/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(HERE/name/f, tmp_path/f)
    refused = 0
    for f in there:
        whole = (tmp_path/f).read_bytes(); (tmp_path/f).write_bytes(whole[:len(whole)//2])
        try: d = load_dataset(name, tmp_path)
        except DataError as e: refused += 1; assert Path(f).name in str(e)
        else: assert any("another version" in n for n in d.notes) or not s.digest or folder_digest(tmp_path, s.files) == s.digest, f
        (tmp_path/f).write_bytes(whole)
    assert refused >= min(1, sum(f.endswith(".json") for f in there))

@pytest.mark.parametrize("name,top1,top5,recall", [pytest.param(*a, marks=external) for a in (("metatool", .428, .616, None), ("stabletoolbench", .634, .873, .673), ("toolalpaca", .234, .477, None))])
def test_bm25_anchors(name, top1, top5, recall):
    "Name in words and description, stemmed, without stop words, against anchors that others measured with another tokenisation: ToolAlpaca to the digit, the rest within 1.4 points."
    from sage_repro.model.lexical import BM25
    d = load_dataset(name, HERE); S = d.only("selection").samples; among = {c for s in S for c in s.candidates or ()}; tools = [t for t in d.tools if not among or t.tool_id in among]
    scores = BM25([tool_text(t) for t in tools]).scores([query_text(s) for s in S]); ids = [t.tool_id for t in tools]
    ranks = [gold_ranks([ids[j] for j in np.argsort(-r, kind="stable")[:50]], s.gold) for r, s in zip(scores, S)]
    assert abs(top_k(ranks, 1).mean() - top1) < .012 and abs(top_k(ranks, 5).mean() - top5) < .014
    if recall: assert abs(np.mean([np.mean(np.asarray(r) <= 5) for r in ranks]) - recall) < .01

@pytest.mark.parametrize("name", [pytest.param("metatool", marks=external), pytest.param("stabletoolbench", marks=external)])
def test_rounds_from_real_libraries(name):
    from sage_repro.bench.streams import external_rounds
    rounds, tools = external_rounds(name, HERE)
    assert len(rounds) == 4 and all(r.stream and r.test for r in rounds) and {e.event for e in rounds[3].events} == {"update"} and len(rounds[3].events) >= 20
    if name == "metatool": assert [len(r.live) for r in rounds] == [130, 156, 163, 163] and len(rounds[3].events) == 23
    card = {t.tool_id: t.description for t in tools}; assert all(e.tool["description"] != card[e.tool_id] for e in rounds[3].events)

@pytest.mark.parametrize("name", [pytest.param("apibank", marks=external), pytest.param("toolalpaca", marks=external)])
def test_eval_by_name(name, tmp_path, warm):
    code, out, err = call("eval", "--dataset", name, "--data-dir", HERE, "--limit", "60", "--out", tmp_path/"o"); assert code == 0, err
    m = json.loads((tmp_path/"o"/"metrics.json").read_text()); assert {x["task"] for x in m} == ({"planning", "timing", "retrieval"} if name == "apibank" else {"selection", "planning"})
    assert all(0 <= x["value"] <= 1 for x in m) and source(name).licence in out
