"Numbers against other people's code: ir-measures, scikit-learn, sentence-transformers, and BM25 written down once more."
from __future__ import annotations
import json, math
from collections import Counter
import numpy as np
import pytest
from sage_repro.bench.metrics import SELECTION_METRICS, gold_ranks, selection_metrics, timing_metrics
from test_cli import call, lines, one_backbone, queries, read, tool_rows, w, warm  # noqa: F401 (fixtures)

def rankings(seed:int, n:int=60):
    "Random rankings of 3 to 40 tools, with 1 to 6 acceptable ones, some of which may be unranked."
    r = np.random.default_rng(seed)
    for i in range(n):
        tools = [f"t{j}" for j in r.permutation(int(r.integers(3, 41)))]; cut = int(r.integers(1, len(tools) + 1))
        yield f"q{i}", tools[:cut], tuple(r.choice(tools, int(r.integers(1, min(6, len(tools)) + 1)), replace=False))

@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_ir_measures(seed):
    import ir_measures
    from ir_measures import RR, P, R, Qrel, ScoredDoc, Success, nDCG
    same = {"top1": Success@1, "top5": Success@5, "mrr": RR, "recall@5": R@5, "precision@5": P@5, "ndcg@5": nDCG@5}
    assert set(same) == set(SELECTION_METRICS)
    rows = list(rankings(seed))
    qrels = [Qrel(q, g, 1) for q, _, gold in rows for g in gold]; run = [ScoredDoc(q, t, float(-i)) for q, order, _ in rows for i, t in enumerate(order)]
    ours = selection_metrics([gold_ranks(order, gold) for _, order, gold in rows]); seen = 0
    for m in ir_measures.iter_calc(list(same.values()), qrels, run):
        [name] = [k for k, v in same.items() if v == m.measure]; at = [q for q, _, _ in rows].index(m.query_id); seen += 1
        assert ours[name][at] == pytest.approx(m.value, abs=1e-9), (name, rows[at])
    assert seen == 6*len(rows)
    assert all((0 <= v).all() and (v <= 1).all() for v in ours.values()) and (ours["mrr"] >= ours["top1"]).all()

def test_the_command_line_s_numbers_equal_ir_measures(w, tmp_path, warm):
    "From files to metrics.json, several acceptable tools, full rankings of twelve."
    import ir_measures
    from ir_measures import RR, P, R, Qrel, ScoredDoc, Success, nDCG
    tools = [t["tool_id"] for t in tool_rows()][:10]; r = np.random.default_rng(3)
    s = [q | {"gold": [*dict.fromkeys([*r.choice(tools, 1 + i % 4, replace=False)])]} for i, q in enumerate(queries(40, 3, "z"))]
    code, *_ = call("eval", "--tools", lines(tmp_path/"t.jsonl", tool_rows()[:10]), "--samples", lines(tmp_path/"s.jsonl", s), "--methods", "keyword,embedding,hybrid_rrf", "--out", tmp_path/"o"); assert code == 0
    metrics, rows = json.loads((tmp_path/"o"/"metrics.json").read_text()), read(tmp_path/"o"/"predictions.jsonl")
    qrels = [Qrel(x["sample_id"], g, 1) for x in s for g in x["gold"]]
    for method in ("selector.keyword", "selector.embedding", "selector.hybrid"):
        run = [ScoredDoc(x["sample_id"], t, float(-i)) for x in rows if x["method"] == method for i, t in enumerate(x["prediction"])]
        for name, m in {"top1": Success@1, "top5": Success@5, "mrr": RR, "recall@5": R@5, "precision@5": P@5, "ndcg@5": nDCG@5}.items():
            [got] = [x["value"] for x in metrics if (x["method"], x["name"], x["seed"]) == (method, name, None)]
            assert got == pytest.approx(ir_measures.calc_aggregate([m], qrels, run)[m], abs=1e-9), (method, name)

@pytest.mark.parametrize("seed", range(20))
def test_timing_metrics_equal_scikit_learn(seed):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
    r = np.random.default_rng(seed); n = int(r.integers(1, 60)); said, gold = r.random(n) < r.random(), r.random(n) < r.random()
    m = timing_metrics(said, gold); tn, fp, _, _ = confusion_matrix(gold, said, labels=[False, True]).ravel()
    want = {"accuracy": accuracy_score(gold, said), "precision": precision_score(gold, said, zero_division=0), "recall": recall_score(gold, said, zero_division=0), "f1": f1_score(gold, said, zero_division=0), "fpr": fp/(fp + tn) if fp + tn else 0}
    assert m == pytest.approx(want)

def test_vectors_equal_sentence_transformers(tmp_path, monkeypatch):
    "The same weights by their own code: tokenising, pooling, length limit, normalisation."
    SentenceTransformer = pytest.importorskip("sentence_transformers", reason="the oracle is installed with: pip install sentence-transformers").SentenceTransformer
    from sage_repro.model.backbone import default_model_dir
    theirs = SentenceTransformer(str(default_model_dir()), device="cpu"); ours = one_backbone()
    assert ours.dim == 384 and theirs.max_seq_length == ours.max_length
    texts = [q["query"] for q in queries(20, 11, "v")] + ["", " ", "a", "Überweisung: 1.900 € → zł", "天气怎么样?", "🙂🙂", "word "*600, "x"*3000, "Tab\tand\nnewline", "CamelCase snake_case kebab-case"]
    x = theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False); cache, ours.cache = ours.cache, None
    try: y = ours.encode(texts, batch=7)
    finally: ours.cache = cache
    assert np.allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5) and np.abs(x - y).max() < 2e-5
    assert np.abs(y - ours.encode(texts)).max() < 2e-5, "and with the cache between"

@pytest.mark.parametrize("seed", range(4))
def test_bm25_equals_its_slow_twin(seed):
    "Lucene's Okapi, straight from the formula; bm25s leaves out the factor k1 + 1, which changes no ranking."
    from sage_repro.model.lexical import BM25, tokens
    r = np.random.default_rng(seed); words = ["rain", "raining", "rates", "rate", "trains", "the", "of", "zloty", "songs", "song", "getSpotRate", "x1", "Überfahrt", "a"]
    texts = [" ".join(r.choice(words, int(r.integers(1, 12)))) for _ in range(30)] + ["the of a", "!!!"]
    asked = [" ".join(r.choice([*words, "unheard"], int(r.integers(1, 6)))) for _ in range(25)] + ["", "the", "unheard"]
    ix = BM25(texts); docs = [tokens(t, ix.stem) or ["\0"] for t in texts]; mean = sum(map(len, docs))/len(docs); df = Counter(x for d in docs for x in set(d))
    def slow(q, d):
        return sum(math.log(1 + (len(docs) - df[t] + .5)/(df[t] + .5))*d.count(t)/(d.count(t) + 1.5*(1 - .75 + .75*len(d)/mean)) for t in tokens(q, ix.stem) if t in df)
    want = np.array([[slow(q, d) for d in docs] for q in asked])
    assert want.max() > 1 and np.allclose(ix.scores(asked), want, atol=1e-4)
