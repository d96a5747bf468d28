"A kill at any moment costs time and nothing else: the run goes on from its checkpoint, bit for bit."
from __future__ import annotations
import json, os, signal, subprocess, threading, time
from contextlib import contextmanager
from pathlib import Path
import pytest
from test_bad_input import complaint, refused, snapshot
from test_cli import SAGE_BENCH, call, lines, one_backbone, queries, timing, tool_rows, trained, w, warm  # noqa: F401 (fixtures)

STAR = {"tool_id": "star", "name": "starChart", "description": "Shows stars and planets."}

def with_events(n:int, seed:int)->list[dict]:
    "Samples of two kinds, a tool that arrives and is asked for, a tool that retires."
    s = queries(n, seed, "q"); t = timing(n//10, seed + 1, "g")
    for i, x in enumerate(t): s.insert(i*11 + 5, x)
    new = [{"sample_id": f"n{i}", "task": "selection", "query": f"what shines up there, number {i % 7}", "gold": ["star"]} for i in range(n//10)]
    a, b = len(s)//3, 2*len(s)//3
    later = [x for x in s[b:] if x["gold"] != ["tax"]]
    return [*s[:a], {"event": "add", "tool": STAR}, *new, *s[a:b], {"event": "retire", "tool": {"tool_id": "tax"}}, *later]

def wait(true, what:str, process=None, seconds:float=60.):
    "Poll until it is true."
    end = time.monotonic() + seconds
    while not true():
        if process is not None and process.poll() is not None: raise AssertionError(f"ended with {process.returncode} before {what}: {process.stderr.read()[-2000:]}")
        if time.monotonic() > end: raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(.005)

@contextmanager
def started(*args, cache:Path):
    "`sage-bench` as a process of its own, gone at the end whatever happens."
    env = os.environ | {"SAGE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with open(cache.with_suffix(".err"), "w+") as err:
        p = subprocess.Popen([str(SAGE_BENCH), *map(str, args)], stdout=subprocess.PIPE, stderr=err, text=True, env=env)
        p.stderr = open(err.name)
        try: yield p
        finally:
            if p.poll() is None: p.kill()
            p.wait(); p.stdout.close(); p.stderr.close()

def same_state(a:Path, b:Path):
    "Weights, optimiser, buffer, memory, generators: everything but the clocks."
    def tree(d): t = json.loads((d/"state.json").read_text()); costs, course = (dict(t.pop(k)["$k"]) for k in ("costs", "history")); costs.pop("seconds"); course.pop("seconds"); return t, costs, course
    assert (a/"state.safetensors").read_bytes() == (b/"state.safetensors").read_bytes(), "bit for bit"
    same = tree(a) == tree(b); assert same, "state differs" # pytest would diff megabytes
    assert (a/"tools.jsonl").read_bytes() == (b/"tools.jsonl").read_bytes()

# ---- train

@pytest.mark.parametrize("method", ["SAGE_full", "SAGE_plus"])
def test_kill_nine_between_checkpoints(method, w, tmp_path, monkeypatch):
    s = lines(tmp_path/"s.jsonl", with_events(700, 5)); n = len(s.read_text().splitlines()); out, whole, ck = tmp_path/"m", tmp_path/"whole", tmp_path/".m.checkpoint"
    base = ("train", "--tools", w/"tools.jsonl", "--stream", s, "--method", method, "--checkpoint-every", "64")
    with started(*base, "--out", out, cache=tmp_path/"c1") as p:
        wait(lambda: (ck/"record.json").is_file() and json.loads((ck/"state.json").read_text())["position"] >= 128 if ck.exists() else False, "the second checkpoint", p)
        p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode == -signal.SIGKILL and not out.exists(), "no half model"
    at = json.loads((ck/"state.json").read_text())["position"]; assert 0 < at < n and at % 64 == 0
    monkeypatch.setenv("SAGE_CACHE", str(tmp_path/"c1")); before = snapshot(ck)
    assert "expected the checkpoint of this command, got one of another" in refused(*base, "--seed", "1", "--out", out) and snapshot(ck) == before and not out.exists()
    code, _, err = call(*base, "--out", out)
    assert code == 0 and err == f"going on at record {at} of {n}\n"
    monkeypatch.setenv("SAGE_CACHE", str(tmp_path/"c2"))
    assert call(*base, "--out", whole)[0] == 0
    same_state(out, whole)
    from sage_repro.stream.checkpoint import load_model
    assert load_model(out)[0].position == n, "what was written can be read, tools that arrived included"
    a, b = (json.loads((d/"record.json").read_text()) for d in (out, whole))
    clocks = {"seconds", "heads_seconds", "wall_seconds", "peak_memory_mb", "tuning_seconds"}
    assert {k: v for k, v in a.items() if k not in clocks} == {k: v for k, v in b.items() if k not in clocks} and a["wall_seconds"] > 0 < a["gradient_visits"]
    assert {p.name for p in tmp_path.iterdir()} == {"m", "whole", "s.jsonl", "c1", "c2", "c1.err"}, "the checkpoint and its leftovers are gone"

def test_another_number_of_samples_is_another_command(w, tmp_path, warm):
    "A checkpoint of a stream that has changed since is not mixed in."
    from sage_repro.paper import cli
    s = queries(200, 0, "q"); f = lines(tmp_path/"s.jsonl", s); base = ("train", "--tools", w/"tools.jsonl", "--stream", f, "--method", "one_pass", "--checkpoint-every", "64", "--out", tmp_path/"m")
    drop, cli._drop_checkpoint = cli._drop_checkpoint, lambda out: None # as if killed just before it is removed
    try: assert call(*base)[0] == 0
    finally: cli._drop_checkpoint = drop
    lines(f, s[:-1]); assert "got one of another" in refused(*base)
    lines(f, s); code, _, err = call(*base)
    assert code == 0 and "going on at record 192 of 200" in err and not (tmp_path/".m.checkpoint").exists()

# ---- stream

def append(path:Path, rows, newline="\n"):
    with open(path, "a", encoding="utf-8") as f: f.write("".join(json.dumps(r, ensure_ascii=False) + newline for r in rows))

def position(out:Path)->int:
    try: return json.loads((out/"record.json").read_text())["follow"]["position"]
    except FileNotFoundError: return -1

def test_follow_a_file_that_grows_through_a_stop_and_a_kill(w, tmp_path, monkeypatch):
    s = with_events(160, 8); f, out, n = tmp_path/"live.jsonl", tmp_path/"agent", len(s); f.write_text("")
    base = ("stream", "--follow", f, "--tools", w/"tools.jsonl", "--out", out, "--save-every", "16")
    with started(*base, cache=tmp_path/"c") as p: # it would follow for ever
        append(f, s[:50]); wait(lambda: position(out) == 48, "the third save", p)
        whole = json.dumps(s[50]); append(f, [], ""); f.open("a").write(whole[:20])
        time.sleep(.3); assert position(out) == 48 and p.poll() is None, "half a line is not a record"
        with f.open("a") as g: g.write(whole[20:] + "\n")
        append(f, s[51:70]); wait(lambda: position(out) == 64, "the fourth save", p)
        time.sleep(.4); p.send_signal(signal.SIGTERM); p.wait(20)
        assert p.returncode == 0 and position(out) == 70, "a service manager's stop saves first"
    with started(*base, cache=tmp_path/"c") as p:
        append(f, s[70:120]); wait(lambda: position(out) >= 118, "a save after the restart", p)
        append(f, s[120:126]); p.send_signal(signal.SIGKILL); p.wait()
    assert (at := position(out)) == 118
    monkeypatch.setenv("SAGE_CACHE", str(tmp_path/"c"))
    writer = threading.Timer(1., lambda: (append(f, s[126:-1]), append(f, s[-1:], ""))); writer.start()
    code, said, err = call(*base, "--idle", "1.5"); writer.join()
    assert code == 0 and err.startswith(f"going on with {out} at record {at}\n") and position(out) == n and f"{n} records learned" in said, "the last line counts without its newline, too"
    monkeypatch.setenv("SAGE_CACHE", str(tmp_path/"c2"))
    code, _, err = call("stream", "--follow", f, "--tools", w/"tools.jsonl", "--out", tmp_path/"whole", "--idle", "0", "--save-every", "1000"); assert code == 0
    same_state(out, tmp_path/"whole")
    from sage_repro.agents.agent import load
    a = load(out, one_backbone()); ids = {t.tool_id for t in a.tools}
    assert "star" in ids and "tax" not in ids and a.rank("what shines up there, number 3")[0][0] == "star", "it learned"
    assert a.trainer.timing_seen == sum(x.get("task") == "timing" for x in s) and a.trainer.costs.arrived == sum(x.get("task") == "selection" for x in s)
    r = json.loads((out/"record.json").read_text()); assert r["method"] == "SAGE_plus" and r["gradient_visits"] > 0 and r["wall_seconds"] > 0

def test_a_second_file_is_not_skipped(w, tmp_path, warm):
    "An agent that followed one file refuses another one, whose first records it would skip; as --model it takes it."
    one, two = lines(tmp_path/"one.jsonl", queries(20, 0, "a")), lines(tmp_path/"two.jsonl", queries(20, 1, "b"))
    base = ("stream", "--tools", w/"tools.jsonl", "--idle", "0")
    assert call(*base, "--follow", one, "--out", tmp_path/"m")[0] == 0; before = snapshot(tmp_path)
    err = refused(*base, "--follow", two, "--out", tmp_path/"m")
    assert "got one that followed one.jsonl; fix: pass it as --model" in err and snapshot(tmp_path) == before
    lines(tmp_path/"one.jsonl", queries(20, 0, "a")[:19]); assert "at least the 20 records" in refused_note(*base, "--follow", one, "--out", tmp_path/"m")
    code, out, _ = call("stream", "--follow", two, "--model", tmp_path/"m", "--idle", "0", "--out", tmp_path/"n")
    assert code == 0 and "20 records learned" in out and position(tmp_path/"n") == 20 and json.loads((tmp_path/"n"/"record.json").read_text())["n_stream"] == 40

def refused_note(*args)->str:
    "The last line of a refusal that first said where it goes on."
    code, _, err = call(*args); assert code == 2 and err.startswith("going on with"); return err.splitlines()[-1]

def test_a_trained_model_is_not_mistaken_for_one_that_follows(trained, w, tmp_path, warm):
    before = snapshot(trained)
    assert "followed nothing; fix: pass it as --model" in refused("stream", "--follow", w/"stream.jsonl", "--out", trained, "--idle", "0") and snapshot(trained) == before

def test_a_bad_line_ends_it_and_what_was_saved_stays(w, tmp_path, warm):
    f = lines(tmp_path/"live.jsonl", queries(20, 0, "a")); base = ("stream", "--follow", f, "--tools", w/"tools.jsonl", "--out", tmp_path/"m", "--idle", "0", "--save-every", "8")
    assert call(*base)[0] == 0; before = snapshot(tmp_path/"m")
    append(f, [{"sample_id": "new", "task": "selection", "query": "q", "gold": ["nope"]}])
    complaint(refused_note(*base), f, 21, "gold", "unknown tool 'nope'")
    assert snapshot(tmp_path/"m") == before
    bad = lines(tmp_path/"bad.jsonl", [{"sample_id": "new", "task": "selection", "query": "q", "gold": ["nope"]}])
    complaint(refused("stream", "--follow", bad, "--model", tmp_path/"m", "--out", tmp_path/"n", "--idle", "0"), bad, 1, "gold", "unknown tool 'nope'")
    assert not (tmp_path/"n").exists()

def test_references_are_checked_after_going_on_without_tools(w, tmp_path, warm):
    "The library of an agent that goes on is its own: with what arrived, without what retired."
    f = lines(tmp_path/"live.jsonl", [{"event": "add", "tool": STAR}, {"event": "retire", "tool": {"tool_id": "fx"}}, *[q for q in queries(20, 0, "a") if q["gold"] != ["fx"]]])
    assert call("stream", "--follow", f, "--tools", w/"tools.jsonl", "--out", tmp_path/"m", "--idle", "0")[0] == 0
    append(f, [{"sample_id": "s", "task": "selection", "query": "what shines", "gold": ["star"]}]); n = len(f.read_text().splitlines())
    assert call("stream", "--follow", f, "--out", tmp_path/"m", "--idle", "0")[0] == 0 and position(tmp_path/"m") == n
    append(f, [{"sample_id": "t", "task": "selection", "query": "yen", "gold": ["fx"]}])
    complaint(refused_note("stream", "--follow", f, "--out", tmp_path/"m", "--idle", "0"), f, n + 1, "gold", "unknown tool 'fx'")
