"SAGE-Bench as it is committed: digests, checks of the items, audits recounted from the raw lines, the card, and the data inside the wheel."
from __future__ import annotations
import json, os, random, re, shutil, subprocess, sys
from collections import Counter, defaultdict
from pathlib import Path
import jsonschema, numpy as np, pytest
from scipy import stats
from sage_repro.bench import datacard, sagebench as sb, tasks
from sage_repro.bench.metrics import top_k
from sage_repro.bench.schema import DataError, SelectionSample, query_text

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT/"data"
SIZES = {"train": 420, "stream": 4060, "dev": 90, "test": 90, "test_extended": 510}
HELD = ("dev", "test", "test_extended")
FILES = ["tools.jsonl", "changes.jsonl", "dialogues/train.jsonl", *(f"audit/{k}.jsonl" for k in ("dialogues", "later", "planning", "selection", "timing", "tools")),
    *(f"selection/{s}.jsonl" for s in (*SIZES, *sb.LATER)), *(f"{t}/{s}.jsonl" for t in ("planning", "timing") for s in ("train", "dev", "test"))]

@pytest.fixture(scope="module")
def splits(): return {s: sb.load_sagebench(s) for s in sb.SPLITS}

@pytest.fixture(scope="module")
def tools(): return sb.load_library(reserve=True)

@pytest.fixture(scope="module")
def live(tools): return [t for t in tools if not t.reserve]

@pytest.fixture
def copy(tmp_path): return Path(shutil.copytree(DATA, tmp_path/"data"))

def raw(name:str)->list[dict]:
    "A file's lines without the package."
    return [json.loads(l) for l in (DATA/name).read_text(encoding="utf-8").splitlines()]

def text_of(samples)->list[str]: return [query_text(s, turns=99) for s in samples]

# ---- digests

def load(name:str, root:Path):
    "Read one data file by its public loader."
    kind, _, rest = name.partition("/"); whole = {"tools.jsonl": sb.load_library, "changes.jsonl": sb.load_changes, "dialogues/train.jsonl": sb.load_talks}
    if name in whole: return whole[name](root=root)
    if kind == "audit": return tasks.load_readings(rest[:-6], root) if rest[:-6] in tasks.READINGS else sb.load_audit(rest[:-6], root)
    return sb.load_sagebench(rest[:-6], kind, root)

def test_manifest_is_what_lies_here():
    m = sb.read_manifest()
    assert m == sb.make_manifest() and sorted(FILES) == sorted(m["files"])
    assert set(m["files"]) == {p.relative_to(DATA).as_posix() for p in DATA.rglob("*.jsonl")}
    assert {s: m["files"][f"selection/{s}.jsonl"]["rows"] for s in SIZES} == SIZES and m["version"] == sb.VERSION
    assert {n: len(raw(n)) for n in m["files"]} == {n: f["rows"] for n, f in m["files"].items()}

def flip(b): return b[:len(b)//2] + bytes([b[len(b)//2] ^ 1]) + b[len(b)//2+1:]

@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, lambda b: b[:-1], lambda b: b[:len(b)//2], lambda b: b + b"\n", lambda b: b"", lambda b: b.replace(b"\n", b"\r\n")],
    ids=["one bit", "last byte lost", "half lost", "byte added", "emptied", "Windows line ends"])
def test_damage_is_refused(copy, name, damage):
    p = copy/name
    before, digest = p.read_bytes(), sb.read_manifest(copy)["files"][name]["sha256"]
    p.write_bytes(damage(before))
    with pytest.raises(DataError) as e: load(name, copy)
    said = str(e.value)
    assert str(p.resolve()) in said and f"expected sha256 {digest} ({len(before)} bytes)" in said and "fix: restore it" in said
    found = re.search(r"got sha256 ([0-9a-f]{64})", said).group(1)
    assert found == sb.sha256(p) != digest
    p.write_bytes(before)
    assert load(name, copy)

def test_a_damaged_library_stops_the_samples_too(copy):
    "Samples are checked against the tools, so the tools' digest counts for them."
    (copy/"tools.jsonl").write_bytes(flip((copy/"tools.jsonl").read_bytes()))
    with pytest.raises(DataError, match="tools.jsonl: expected sha256"): sb.load_sagebench("test", root=copy)

def test_missing_and_unknown_files_are_refused(copy):
    (copy/"selection"/"dev.jsonl").unlink()
    with pytest.raises(DataError, match=r"dev.jsonl: expected sha256 \w{64}, got no file"): sb.load_sagebench("dev", root=copy)
    (copy/"selection"/"mine.jsonl").write_text("{}\n")
    for stranger in ("selection/mine.jsonl", "../settings.ini", "README.md"):
        with pytest.raises(DataError, match="expected a file of MANIFEST.json"): sb.verify(stranger, copy)
    with pytest.raises(ValueError, match="got split='mine'"): sb.load_sagebench("mine", root=copy)
    with pytest.raises(ValueError, match="task='nothing'"): sb.load_sagebench("test", "nothing")
    with pytest.raises(ValueError, match="kind must be one of"): sb.load_audit("people")

@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"files": {"tools.jsonl": "x"}}', '{"files": {"tools.jsonl": {"sha256": "x"}}}', "\x00"])
def test_a_broken_manifest_is_refused(copy, text):
    p = copy/"MANIFEST.json"
    p.unlink() if text is None else p.write_text(text)
    with pytest.raises(DataError, match="MANIFEST.json: .*fix: restore it"): sb.load_library(root=copy)

def test_data_digest_moves_with_any_file_and_only_then(copy):
    m = sb.read_manifest(copy)
    want = sb.data_digest()
    (copy/"MANIFEST.json").write_text(json.dumps(dict(reversed(m.items()))))
    assert sb.data_digest(copy) == want
    seen = {want}
    for name in m["files"]:
        other = json.loads(json.dumps(m)); other["files"][name]["sha256"] = "0"*64
        (copy/"MANIFEST.json").write_text(json.dumps(other)); seen.add(sb.data_digest(copy))
    assert len(seen) == len(m["files"]) + 1

# ---- items

def test_sizes_and_ids(splits, tools, live):
    assert {s: len(v) for s, v in splits.items()} == SIZES and (len(live), len(tools)) == (1200, 1350)
    assert set(Counter(t.category for t in live).values()) == {100} and len({t.category for t in live}) == 12
    ids = [s.sample_id for v in splits.values() for s in v]
    assert len(ids) == len(set(ids)) and len({" ".join(sb._words(sb.split_name(t.name))) for t in tools}) == len(tools)
    assert all(t.parameters["type"] == "object" and set(t.parameters["required"]) <= set(t.parameters["properties"]) for t in tools)
    for t in tools: jsonschema.Draft202012Validator.check_schema(t.parameters)

def test_no_duplicates(splits): assert sb.duplicates(splits) == []

def test_no_near_duplicates_across_splits(splits): assert sb.near_duplicates(splits) == []

def test_no_near_duplicates_by_brute_force(splits):
    "Every pair across splits that shares a 3-gram, without MinHash: the oracle of the check before."
    rows = [(split, sb.shingles(s.query)) for split, L in splits.items() for s in L]
    holds, common = defaultdict(list), Counter()
    for i, (_, x) in enumerate(rows):
        for g in x: holds[g].append(i)
    for L in holds.values(): common.update((a, b) for n, b in enumerate(L) for a in L[:n] if rows[a][0] != rows[b][0])
    assert max(n / len(rows[a][1] | rows[b][1]) for (a, b), n in common.items()) < .5

def test_planted_near_duplicates_are_found(splits):
    "Training queries with one word changed, put into a test: each that stays above the threshold is found."
    rnd, planted = random.Random(0), []
    for s in rnd.sample([s for s in splits["train"] if len(s.query.split()) > 14], 60):
        w = s.query.split(); w[rnd.randrange(len(w))] = "xyzzy"
        planted.append(s.model_copy(update={"sample_id": "new-" + s.sample_id, "query": " ".join(w)}))
    found = {(a, b) for a, b, _ in sb.near_duplicates({"train": splits["train"], "test": planted})}
    was = {s.sample_id: sb.shingles(s.query) for s in splits["train"]}
    due = {(p.sample_id[4:], p.sample_id) for p in planted if sb.jaccard(was[p.sample_id[4:]], sb.shingles(p.query)) >= .5}
    assert len(due) > 50 and len(due - found) <= 1 and found <= due

def test_queries_neither_name_the_tool_nor_copy_its_card(splits, live):
    rows = [s for L in splits.values() for s in L]
    assert sb.tool_names_in(rows, live) == [] and sb.copied_runs(rows, live) == []
    t = live[0]; w = t.description.split()
    bad = [SelectionSample(sample_id="n", query=f"please, {sb.split_name(t.name).upper()}!", gold=(t.tool_id,)),
           SelectionSample(sample_id="r", query="and?", gold=(t.tool_id,), history=[{"role": "user", "content": "so " + " ".join(w[1:5])}])]
    assert [i for i, _ in sb.tool_names_in(bad, live)] == ["n"] and "r" in {i for i, _ in sb.copied_runs(bad, live)}

def test_gold_exists_and_is_not_in_the_reserve(splits, tools):
    assert sb.unknown_gold([s for L in splits.values() for s in L], tools) == []
    spare = next(t.tool_id for t in tools if t.reserve)
    bad = [SelectionSample(sample_id="a", query="q", gold=(spare,)), SelectionSample(sample_id="b", query="q", gold=("nope",))]
    assert sb.unknown_gold(bad, tools) == [("a", spare), ("b", "nope")]

def test_a_tenth_of_the_test_tools_is_unseen(splits):
    "Recounted from the raw lines."
    gold = {s: [g for r in raw(f"selection/{s}.jsonl") for g in r["gold"]] for s in SIZES}
    seen = set(gold["train"]) | set(gold["stream"])
    tested = set(gold["test"]) | set(gold["test_extended"])
    assert len(tested - seen) * 10 == len(tested) == 600 and tested - seen == sb.unseen_tools(splits)
    marked = {g for s in SIZES for r in raw(f"selection/{s}.jsonl") if r.get("unseen") for g in r["gold"]}
    assert marked == tested - seen and len(set(gold["dev"]) & tested) == 0

def test_balance(splits, live):
    category = {t.tool_id: t.category for t in live}
    assert all(s.category == category[g] for L in splits.values() for s in L for g in s.gold)
    for name, L in splits.items():
        cat, level = Counter(s.category for s in L), Counter(s.difficulty for s in L)
        assert len(cat) == 12 and max(cat.values()) <= 1.15 * min(cat.values()) + 1, name
        assert set(level) == {"easy", "medium", "hard"} and all(.25 <= n/len(L) <= .45 for n in level.values()), name
        voice = Counter(s.voice for s in L)
        assert len(voice) == 9 and min(voice.values())/len(L) > .03 and max(voice.values())/len(L) < .25, name
        assert all((s.voice == "followup") == bool(s.history) for s in L), name
    both = Counter(g for n in ("train", "stream") for s in splits[n] for g in s.gold)
    assert set(Counter(g for n in HELD for s in splits[n] for g in s.gold).values()) == {1} and 2 <= min(both.values()) and max(both.values()) <= 6
    assert (sb.balance(splits, live)["queries"] == list(SIZES.values())).all()
    with pytest.raises(ValueError, match="categories of samples"): sb.balance({"x": [splits["test"][0].model_copy(update={"category": "zoo"})]}, live)

def test_lengths(splits, live):
    t = sb.text_statistics(splits, live)
    assert t["longest"].max() <= 90 and (t["5 %"] >= 4).all() and t["words, median"].between(10, 40).all()

# ---- floors

def test_chance_against_drawn_rankings(live):
    c = sb.chance(len(live))
    assert c["top1"] == 1/1200 and c["top5"] == pytest.approx(5/1200) and c["mrr"] == pytest.approx(sum(1/k for k in range(1, 1201))/1200)
    for n, g in ((5, 5), (7, 1), (30, 4)):
        e = sb.chance(n, g)
        h = stats.hypergeom(n, g, min(5, n))
        assert e["top1"] == pytest.approx(g/n) and e["top5"] == pytest.approx(1 - h.pmf(0))

def test_memoriser_against_its_slow_twin(splits, live):
    "Nearest training query of each tool, tool by tool, with scikit-learn's own cosine."
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity
    train, test = splits["train"], splits["dev"][:25]
    v = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(text_of(train))
    sim = cosine_similarity(v.transform(text_of(test)), v.transform(text_of(train))).round(9)
    got = sb.memoriser(train, test, live)
    for i, s in enumerate(test):
        best = {t.tool_id: max((sim[i, j] for j, x in enumerate(train) if t.tool_id in x.gold), default=-1) for t in live}
        order = sorted(best, key=lambda t: -best[t]) # stable: ties in file order
        assert got[i] == [order.index(g) + 1 for g in s.gold]

def test_no_floor_is_near_the_ceiling_and_none_is_hidden(splits, live):
    f = sb.floors(splits, live)
    assert len(f) == 4*3 and set(f.split) == set(HELD) and {"chance", "word match", "memoriser, 420", "memoriser, 4480"} == set(f.floor)
    assert all(e.mean < .6 for e in f.top1) and all(a.mean <= m.mean <= 1 and a.mean <= b.mean for a, b, m in zip(f.top1, f.top5, f.mrr))
    L = splits["test"] + splits["test_extended"]
    hit = top_k(sb.memoriser(splits["train"] + splits["stream"], L, live), 1)
    assert not hit[[s.unseen for s in L]].any() # memory knows nothing of a new tool

# ---- audits, recounted

def test_agreement_recounted_from_raw_lines():
    gold = {r["sample_id"]: r for s in SIZES for r in raw(f"selection/{s}.jsonl")}
    for rnd in (None, 1, 2, 3):
        n, ok = Counter(), Counter()
        for r in raw("audit/selection.jsonl"):
            if (r.get("superseded") if rnd is None else r["round"] != rnd): continue
            for level in (gold[r["sample_id"]]["difficulty"], "all"):
                n[r["split"], level] += 1; ok[r["split"], level] += r["answer"] in gold[r["sample_id"]]["gold"]
        a = sb.audit_agreement(rnd)
        assert {(x.split, x.difficulty): (x.agree, x.n) for x in a.itertuples()} == {k: (ok[k], n[k]) for k in n}
        for x in a.itertuples():
            ci = stats.binomtest(x.agree, x.n).proportion_ci(.95, "exact")
            assert (x.low, x.high, x.rate) == (pytest.approx(ci.low), pytest.approx(ci.high), x.agree/x.n)
    with pytest.raises(ValueError, match="round must be one that was read"): sb.audit_agreement(9)

def test_a_wrong_answer_lowers_the_agreement(copy):
    "The count reads the answers; it does not assume them."
    p = copy/"audit"/"selection.jsonl"
    rows = [json.loads(l) for l in p.read_text(encoding="utf-8").splitlines()]
    i = next(i for i, r in enumerate(rows) if r["split"] == "test" and not r.get("superseded"))
    rows[i]["answer"] = next(c for c in rows[i]["candidates"] if c != rows[i]["answer"])
    p.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    (copy/"MANIFEST.json").write_text(json.dumps(sb.make_manifest(copy)))
    one = lambda root: sb.audit_agreement(root=root).set_index(["split", "difficulty"]).loc[("test", "all")]
    assert one(copy).agree == one(DATA).agree - 1 and one(copy).low < one(DATA).low

def test_each_held_out_item_was_read_and_the_rounds_fit(splits, tools):
    rows, by, known = sb.load_audit(), {s.sample_id: s for L in splits.values() for s in L}, {t.tool_id for t in tools}
    last = Counter(r.sample_id for r in rows if not r.superseded)
    assert set(last.values()) == {1} and {s.sample_id for n in HELD for s in splits[n]} <= last.keys()
    first, second, third = ({r.sample_id: r for r in rows if r.round == k} for k in (1, 2, 3))
    held = {s.sample_id for n in HELD for s in splits[n]}
    disputed = {r.sample_id for r in rows if r.round == 4}
    assert third.keys() == held and {i for i, r in third.items() if r.superseded} == disputed # everything once more, among the gold tool's family
    assert disputed <= {i for i, r in third.items() if r.answer not in by[i].gold}
    assert all(first[i].superseded for i in held) and all(r.superseded for r in second.values())
    assert second.keys() >= {i for i in held if first[i].query_read} # what was reworded was read again
    readers = [{r.reader for r in x.values()} for x in (first, second, third)]
    assert not readers[0] & readers[1] and not (readers[0] | readers[1]) & readers[2] # fresh readers
    for r in rows:
        s = by[r.sample_id]
        assert len(set(r.candidates)) == len(r.candidates) == 10 and set(r.candidates) <= known and set(s.gold) & set(r.candidates)
        assert r.answer in r.candidates and s in splits[r.split] and set(r.earlier_cards) <= set(r.candidates)
        assert r.query_read is None or (r.query_read != s.query and (r.superseded or r.split in ("train", "stream") or r.answer not in s.gold))

def test_gold_stands_anywhere_among_the_candidates(splits):
    "A place that gold prefers would tell a reader the answer."
    gold = {s.sample_id: s.gold[0] for L in splits.values() for s in L}
    at = Counter(r.candidates.index(gold[r.sample_id]) for r in sb.load_audit())
    assert len(at) == 10 and stats.chisquare(list(at.values())).pvalue > .001

def test_pairs_of_cards(tools):
    pairs, now = sb.load_audit("tools"), {t.tool_id: t.description for t in tools}
    changed = {t for p in pairs for t in p.earlier_descriptions}
    assert all(p.earlier_descriptions[t] != now[t] and t in p.tools for p in pairs for t in p.earlier_descriptions)
    assert {p.rewritten for p in pairs if p.rewritten} == changed and all((p.verdict == "apart") == (p.rewritten is None) for p in pairs)
    assert len({frozenset(p.tools) for p in pairs}) == len(pairs) and {t for r in sb.load_audit() for t in r.earlier_cards} <= changed

# ---- schemas, Croissant, card

def test_schemas_are_committed_and_fit_every_line():
    want = datacard.schemas()
    assert {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in (DATA/"schema").glob("*.json")} == json.loads(json.dumps(want))
    kind = {"tools.jsonl": "tool", "changes.jsonl": "library_event", "dialogues/train.jsonl": "dialogue", "audit/later.jsonl": "audit_selection"}
    for name in FILES:
        room, _, rest = name.partition("/"); v = jsonschema.Draft202012Validator(want[kind.get(name) or (f"audit_{rest[:-6]}" if room == "audit" else room)])
        bad = [(name, n, e.message) for n, row in enumerate(raw(name), 1) if not v.is_valid(row) for e in v.iter_errors(row)]
        assert not bad, bad[:3]

@pytest.mark.parametrize("kind,line", [("tool", {"tool_id": "a", "name": "b"}), ("selection", {"sample_id": "a", "query": "q", "gold": "x"}), ("timing", {"sample_id": "a", "query": "q", "gold": "yes"}),
    ("planning", {"sample_id": "a", "query": "q", "gold": [{"depends_on": []}]}), ("library_event", {"event": "drop", "tool": {}}), ("audit_selection", {"sample_id": "a"}), ("audit_tools", {"pair": 0})])
def test_schemas_refuse(kind, line): assert not jsonschema.Draft202012Validator(datacard.schemas()[kind]).is_valid(line)

def test_croissant():
    c = json.loads((DATA/"croissant.json").read_text(encoding="utf-8"))
    assert c == json.loads(json.dumps(datacard.croissant()))
    assert c["@type"] == "sc:Dataset" and "http://mlcommons.org/croissant/1.0" in c["conformsTo"]
    assert {"@context", "name", "description", "license", "url", "creator", "datePublished", "version", "citeAs", "distribution", "recordSet"} <= c.keys()
    assert c["license"].endswith("/by/4.0/") and c["version"] == sb.VERSION
    files = {f["@id"]: f for f in c["distribution"]}
    assert {n: f["sha256"] for n, f in files.items()} == {n: f["sha256"] for n, f in sb.read_manifest()["files"].items()}
    assert all((DATA/f["contentUrl"]).is_file() and f["@type"] == "cr:FileObject" for f in files.values())
    ids = [x["@id"] for r in c["recordSet"] for x in (r, *r["field"])] + list(files)
    assert len(ids) == len(set(ids)) and len(c["recordSet"]) == len(FILES)
    for r in c["recordSet"]:
        for f in r["field"]:
            src, col = f["source"]["fileObject"]["@id"], f["source"]["extract"]["column"]
            assert src in files and all(isinstance(row[col], list) == f.get("repeated", False) for row in raw(src)), f["@id"]

def test_the_card_is_rendered_and_says_what_it_must():
    card = (DATA/"README.md").read_text(encoding="utf-8")
    assert card == datacard.data_card(), "run sage_repro.bench.datacard.build_data()"
    for phrase in ("Written by language models", "Nothing was read by people yet", "CC-BY-4.0", "upper bound", "same family", "English only", "One gold tool", "was thus changed once *after* a baseline", "not enforced", sb.data_digest()):
        assert phrase in card, phrase

def test_the_card_counts(copy):
    "Another file, another card."
    lines = (copy/"selection"/"stream.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    read = {r["sample_id"] for r in raw("audit/selection.jsonl")}
    keep = [l for l in lines if json.loads(l)["sample_id"] in read] + lines[:40]
    (copy/"selection"/"stream.jsonl").write_text("".join(dict.fromkeys(keep)), encoding="utf-8")
    written = datacard.build_data(copy)
    card = (copy/"README.md").read_text(encoding="utf-8")
    assert copy/"README.md" in written and f"{420 + len(set(keep)):,} training queries" in card and "4,480" not in card

# ---- the wheel

def test_the_wheel_carries_the_data(tmp_path):
    "Built from a copy, unpacked elsewhere, loaded where no checkout is above the working directory."
    src, away, out = tmp_path/"src", tmp_path/"away", tmp_path/"site"
    for d in ("sage_repro", "data"): shutil.copytree(ROOT/d, src/d, ignore=shutil.ignore_patterns("__pycache__"))
    for f in ("pyproject.toml", "settings.ini", "LICENSE", "README.md"):
        if (ROOT/f).is_file(): shutil.copy(ROOT/f, src)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, src], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", out, wheel], check=True, capture_output=True)
    shutil.rmtree(src); away.mkdir()
    code = ("from sage_repro.bench import sagebench as b; import sage_repro, json\n"
            "print(json.dumps([sage_repro.__file__, str(b.data_dir()), b.data_digest(), {s: len(b.load_sagebench(s)) for s in b.SPLITS}, len(b.load_audit())]))")
    run = lambda: subprocess.run([sys.executable, "-c", code], cwd=away, env={**os.environ, "PYTHONPATH": str(out)}, capture_output=True, text=True)
    r = run(); assert r.returncode == 0, r.stderr
    module, folder, digest, sizes, readings = json.loads(r.stdout)
    assert Path(module).is_relative_to(out) and Path(folder).is_relative_to(out.resolve()) and digest == sb.data_digest() and sizes == SIZES and readings == len(sb.load_audit())
    missing = {p.relative_to(DATA) for p in DATA.rglob("*") if p.is_file()} - {p.relative_to(folder) for p in Path(folder).rglob("*") if p.is_file()}
    assert not missing, f"not in the wheel; add the folder to [tool.setuptools.data-files]: {sorted(map(str, missing))}"
    shutil.rmtree(folder)
    assert "fix: run inside a checkout of sage_repro, or install its wheel again" in run().stderr
