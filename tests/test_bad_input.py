"Input that cannot be used: one line that says where, what and how to mend it; exit code 2; nothing written."
from __future__ import annotations
import json, os, re, shutil, subprocess
from pathlib import Path
import pytest
from test_cli import SAGE_BENCH, call, lines, queries, timing, tool_rows, trained, w, warm  # noqa: F401 (fixtures)

FORM = re.compile(r"^(?P<file>.+?)(:(?P<line>\d+))?: (field (?P<field>\S+): )?expected (?P<want>.+), got (?P<got>.+); fix: (?P<fix>.+)$")
GOOD = json.dumps(queries(1, 0, "a")[0])
TOOL = json.dumps(tool_rows()[1])
row = lambda **k: json.dumps({"sample_id": "x", "task": "selection", "query": "how many yen", "gold": ["fx"]} | k)
tool = lambda **k: json.dumps({"tool_id": "x", "name": "x", "description": "does x"} | k)
gone = lambda text, key: json.dumps({k: v for k, v in json.loads(text).items() if k != key})
deep = lambda n: "["*n + "]"*n

# what is wrong: (the file's text or bytes, line of the complaint, its field, words of it)
SAMPLES = {
    "no task": (gone(row(), "task"), 1, "task", "got nothing; fix: set the task"),
    "no query": (gone(row(), "query"), 1, "query", "expected a value, got nothing; fix: add the field"),
    "no gold": (GOOD + "\n" + gone(row(), "gold"), 2, "gold", "got nothing"),
    "no id": (gone(row(), "sample_id"), 1, "sample_id", "got nothing"),
    "query a number": (row(query=5), 1, "query", "expected a string, got 5; fix: quote the value"),
    "query null": (row(query=None), 1, "query", "expected a string, got null"),
    "query blank": (row(query=" \t"), 1, "query", "not blank"),
    "query empty": (row(query=""), 1, "query", "non-empty"),
    "id a number": (row(sample_id=5), 1, "sample_id", "expected a string, got 5"),
    "gold a text": (row(gold="fx"), 1, "gold", 'expected a list, got "fx"'),
    "gold empty": (row(gold=[]), 1, "gold", "at least one"),
    "gold of numbers": (row(gold=[1]), 1, "gold.0", "expected a string, got 1"),
    "gold unknown": (GOOD + "\n\n" + row(gold=["fx", "nope"]), 3, "gold", "unknown tool 'nope'"),
    "gold twice": (row(gold=["fx", "fx"]), 1, "gold", "each tool once"),
    "gold too many": (row(gold=[t["tool_id"] for t in tool_rows()] + ["a", "b", "c", "d", "e"]), 1, "gold", "unknown tool 'a'"),
    "candidates without gold": (row(candidates=["sky"]), 1, "candidates", "at least one gold tool"),
    "candidates unknown": (row(candidates=["fx", "nope"]), 1, "candidates", "unknown tool 'nope'"),
    "candidates empty": (row(candidates=[]), 1, "candidates", "gold tool among"),
    "history a text": (row(history="before"), 1, "history", "expected a list"),
    "history of texts": (row(history=["before"]), 1, "history.0", "expected an object"),
    "history without role": (row(history=[{"content": "x"}]), 1, "history.0.role", "got nothing"),
    "unseen a text": (row(unseen="yes"), 1, "unseen", "true or false"),
    "task unknown": (row(task="guessing"), 1, "task", 'one of selection, planning, timing, got "guessing"'),
    "task a list": (row(task=["selection"]), 1, "task", "one of selection"),
    "timing gold a text": (row(task="timing", gold="yes"), 1, "gold", "true or false"),
    "timing gold a number": (row(task="timing", gold=1), 1, "gold", "true or false, got 1"),
    "plan that waits for itself": (row(task="planning", gold=[{"tool_id": "fx", "depends_on": [0]}]), 1, "gold", "earlier ones only"),
    "plan with a text for a number": (row(task="planning", gold=[{"tool_id": "fx"}, {"tool_id": "fx", "depends_on": ["0"]}]), 1, "gold.1.depends_on.0", "a whole number"),
    "plan with an unknown tool": (row(task="planning", gold=[{"tool_id": "nope"}]), 1, "gold", "unknown tool 'nope'"),
    "only planning": (row(task="planning", gold=[{"tool_id": "fx"}]), None, "task", "only planning"),
    "same id twice": ("\n".join([row(sample_id="a"), row(sample_id="b"), row(sample_id="a")]), 3, "sample_id", "already on line 1"),
    "tools instead of samples": (TOOL, 1, "task", "as --tools"),
    "empty": ("", None, None, "an empty file"),
    "blank lines only": ("\n \n\t\n", None, None, "an empty file"),
    "byte order mark only": (b"\xef\xbb\xbf", 1, None, "one JSON object"),
    "not UTF-8": (GOOD.encode() + b"\n" + row(query="caf\xe9").encode().replace(b"\\u00e9", b"\xe9"), 2, None, "byte 0xe9"),
    "UTF-16": (GOOD.encode("utf-16"), 1, None, "byte 0xff at column 1"),
    "a line of 10 MB": (row(query="a"*10_000_000), 1, None, "at most 1 MiB"),
    "the last line of 10 MB": (GOOD + "\n" + row(query="a"*10_000_000), 2, None, "at most 1 MiB"),
    "not JSON": ("sample_id: 1", 1, None, "one JSON object"),
    "half a line": (GOOD + "\n" + row()[:30], 2, None, "one JSON object"),
    "two objects on a line": (row() + row(sample_id="y"), 1, None, "Extra data"),
    "pretty printed": (json.dumps(json.loads(row()), indent=2), 1, None, "one JSON object"),
    "a list around it": (f"[{GOOD}]", 1, None, "a JSON object {...}, got a list"),
    "a number": ("7", 1, None, "got a number"),
    "null": ("null", 1, None, "got null"),
    "NaN": (row()[:-1] + ', "difficulty": NaN}', 1, None, "finite number of usual size, got NaN"),
    "minus infinity": (row()[:-1] + ', "feedback": [-Infinity]}', 1, None, "got -Infinity"),
    "a number beyond floats": (row()[:-1] + ', "feedback": 1e999}', 1, None, "got 1e999"),
    "a number of 5,000 digits": (row()[:-1] + ', "feedback": ' + "9"*5000 + "}", 1, None, "usual size"),
    "deep, but readable": (row()[:-1] + ', "feedback": ' + deep(400) + "}", 1, None, "at most 100 levels"),
    "as deep as a line is long": (deep(400_000), 1, None, "at most 100 levels"),
    "half a character": (row()[:-1].replace("yen", "\\ud83d") + "}", 1, None, "half of a surrogate pair"),
    "a NUL outside a string": (GOOD + "\n\0", 2, None, "one JSON object"),
    "library events only": (json.dumps({"event": "retire", "tool": {"tool_id": "fx"}}), None, None, ""),
}
TOOLS = {
    "no tool_id": (gone(tool(), "tool_id"), 1, "tool_id", "got nothing"),
    "no name": (gone(tool(), "name"), 1, "name", "got nothing"),
    "no description": (TOOL + "\n" + gone(tool(), "description"), 2, "description", "got nothing"),
    "description a number": (tool(description=7), 1, "description", "expected a string, got 7"),
    "description blank": (tool(description="  "), 1, "description", "not blank"),
    "name too long": (tool(name="x"*300), 1, "name", "at most 200 characters"),
    "parameters a list": (tool(parameters=[]), 1, "parameters", "expected an object, got []"),
    "reserve a text": (tool(reserve="no"), 1, "reserve", "true or false"),
    "same id twice": ("\n".join([tool(), TOOL, tool()]), 3, "tool_id", "already on line 1"),
    "samples instead of tools": (GOOD, 1, "tool_id", "expected a tool, got a sample"),
    "the reserve only": (tool(reserve=True), None, "reserve", "reserve only"),
    "empty": ("", None, None, "an empty file"),
    "not JSON": ("{", 1, None, "one JSON object"),
    "not UTF-8": (b'{"tool_id": "\xff"}', 1, None, "byte 0xff"),
}
STREAM = {
    "event unknown": (json.dumps({"event": "sell", "tool": {"tool_id": "fx"}}), 1, "event", "'add', 'retire' or 'update'"),
    "event without tool": (json.dumps({"event": "add"}), 1, "tool", "got nothing"),
    "event of a tool without id": (json.dumps({"event": "retire", "tool": {}}), 1, "tool", "non-empty string"),
    "a new tool without description": (json.dumps({"event": "add", "tool": {"tool_id": "n", "name": "n"}}), 1, "tool.description", "got nothing"),
    "a tool that is there": (GOOD + "\n" + json.dumps({"event": "add", "tool": tool_rows()[0]}), 2, "tool.tool_id", "already in the library"),
    "retire an unknown tool": (json.dumps({"event": "retire", "tool": {"tool_id": "nope"}}), 1, "tool.tool_id", "unknown tool 'nope'"),
    "gold that has retired": (json.dumps({"event": "retire", "tool": {"tool_id": "fx"}}) + "\n" + row(), 2, "gold", "unknown tool 'fx'"),
    "retire everything": ("\n".join(json.dumps({"event": "retire", "tool": {"tool_id": t["tool_id"]}}) for t in tool_rows()), 12, "tool.tool_id", "the last one"),
    "timing only": (json.dumps(timing(1, 0, "a")[0]), None, "task", "only timing"),
}

def put(path:Path, content)->Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode()); return path

def snapshot(folder:Path)->dict:
    "Every file and folder below, with its content."
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

def refused(*args)->str:
    "The one line of a refusal."
    code, out, err = call(*args)
    assert code == 2 and out == "" and "Traceback" not in err and err.endswith("\n") and err.count("\n") == 1, (code, out, err[:2000])
    assert len(err) < 1500
    return err.rstrip("\n")

def complaint(err:str, path:Path, line, field, words):
    m = FORM.match(err)
    assert m and m["file"] == str(path) and (m["line"] and int(m["line"])) == line and m["field"] == field and words in err, err

@pytest.fixture(params=["no folder yet", "good output there"])
def out(request, tmp_path)->Path:
    "Where output would go: nowhere yet, or onto a good one."
    o = tmp_path/"box"/"deep"/"o"
    if request.param == "good output there":
        o.mkdir(parents=True)
        for n in ("metrics.json", "predictions.jsonl", "model.json", "record.json", "state.json"): put(o/n, f"precious {n}")
    return o

@pytest.mark.parametrize("case", SAMPLES)
def test_samples(case, w, tmp_path, out):
    content, line, field, words = SAMPLES[case]; bad = put(tmp_path/"bad.jsonl", content); before = snapshot(tmp_path)
    err = refused("eval", "--tools", w/"tools.jsonl", "--samples", bad, "--methods", "keyword", "--out", out)
    if case == "library events only": line, words = 1, "pass this file as --stream"
    complaint(err, bad, line, field, words)
    assert snapshot(tmp_path) == before

@pytest.mark.parametrize("case", [*SAMPLES, *STREAM])
def test_streams(case, w, tmp_path, out):
    content, line, field, words = (SAMPLES | STREAM)[case]; bad = put(tmp_path/"bad.jsonl", content); before = snapshot(tmp_path)
    if case == "library events only": field, words = "task", "got library events only"
    complaint(refused("train", "--tools", w/"tools.jsonl", "--stream", bad, "--method", "SAGE_plus", "--out", out), bad, line, field, words)
    assert snapshot(tmp_path) == before
    if case not in SAMPLES or case in ("library events only", "only planning"): return
    complaint(refused("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--dev", bad, "--method", "SAGE_plus", "--out", out), bad, line, field, words)
    assert snapshot(tmp_path) == before

@pytest.mark.parametrize("case", TOOLS)
def test_tools(case, w, tmp_path, out):
    content, line, field, words = TOOLS[case]; bad = put(tmp_path/"bad.jsonl", content); before = snapshot(tmp_path)
    for args in (("eval", "--samples", w/"test.jsonl", "--methods", "keyword"), ("train", "--stream", w/"stream.jsonl", "--method", "SAGE_plus"), ("stream", "--follow", w/"stream.jsonl", "--idle", "0")):
        if args[0] == "stream" and out.exists(): continue # an agent that is there brings its own tools
        complaint(refused(*args, "--tools", bad, "--out", out), bad, line, field, words)
    complaint(refused("validate", "--tools", bad), bad, line, field, words)
    assert snapshot(tmp_path) == before

def test_more_acceptable_tools_than_are_kept(w, tmp_path):
    many = [{"tool_id": f"t{i}", "name": f"t{i}", "description": "x"} for i in range(20)]; t = lines(tmp_path/"t.jsonl", many)
    bad = put(tmp_path/"bad.jsonl", row(gold=[x["tool_id"] for x in many[:17]]))
    complaint(refused("eval", "--tools", t, "--samples", bad, "--methods", "keyword", "--out", tmp_path/"o"), bad, 1, "gold", "at most 16 acceptable tools, got 17")

@pytest.mark.parametrize("option", ["--tools", "--samples", "--train", "--model"])
def test_files_that_are_not_there(option, w, tmp_path, out):
    before = snapshot(tmp_path)
    for name in ("nothing.jsonl", ".", "x"*300, "a\0b"):
        bad = tmp_path/name if "\0" not in name else f"{tmp_path}/{name}"
        args = {"--tools": w/"tools.jsonl", "--samples": w/"test.jsonl", "--train": w/"stream.jsonl", "--methods": "keyword", "--out": out} | {option: bad}
        err = refused("eval", *(x for kv in args.items() for x in kv))
        if len(name) < 300: assert FORM.match(err) and ("got a folder" in err) == (name == "." and option != "--model"), err
    assert snapshot(tmp_path) == before

@pytest.mark.parametrize("damage", ["model.json not JSON", "model.json empty object", "model.json a list", "format", "method field", "state.json cut", "state.json other tag", "tensors cut", "tools gone", "one file gone", "other tensors"])
def test_a_damaged_model(damage, trained, w, tmp_path, out):
    m = Path(shutil.copytree(trained, tmp_path/"m")); meta = json.loads((m/"model.json").read_text())
    if damage == "model.json not JSON": put(m/"model.json", "{")
    if damage == "model.json empty object": put(m/"model.json", "{}")
    if damage == "model.json a list": put(m/"model.json", "[]")
    if damage == "format": put(m/"model.json", json.dumps(meta | {"format": 99}))
    if damage == "method field": put(m/"model.json", json.dumps(meta | {"method": meta["method"] | {"nonsense": 1}}))
    if damage == "state.json cut": put(m/"state.json", (m/"state.json").read_bytes()[:-9])
    if damage == "state.json other tag": put(m/"state.json", (m/"state.json").read_text().replace('"$k"', '"$z"'))
    if damage == "tensors cut": put(m/"state.safetensors", (m/"state.safetensors").read_bytes()[:1000])
    if damage == "tools gone": put(m/"tools.jsonl", (m/"tools.jsonl").read_text().splitlines()[0] + "\n")
    if damage == "one file gone": (m/"state.json").unlink()
    if damage == "other tensors": put(m/"state.json", (m/"state.json").read_text().replace('{"$t": "', '{"$t": "9'))
    before = snapshot(tmp_path)
    err = refused("eval", "--model", m, "--samples", w/"test.jsonl", "--out", out)
    assert FORM.match(err) and err.startswith(str(m)), err
    assert snapshot(tmp_path) == before

# ---- where output may go

def test_out_that_is_a_file(w, tmp_path):
    put(tmp_path/"file", "precious"); before = snapshot(tmp_path)
    for o in (tmp_path/"file", tmp_path/"file"/"below"):
        for args in (("eval", "--samples", w/"test.jsonl", "--methods", "keyword"), ("train", "--stream", w/"stream.jsonl", "--method", "SAGE_plus"), ("stream", "--follow", w/"stream.jsonl", "--idle", "0")):
            err = refused(*args, "--tools", w/"tools.jsonl", "--out", o)
            assert err.startswith(f"--out {o}: expected a folder, got a file") and "; fix: " in err
    assert snapshot(tmp_path) == before

def test_out_with_other_peoples_files(w, tmp_path):
    put(tmp_path/"thesis.tex", "precious"); before = snapshot(tmp_path)
    for args in (("train", "--stream", w/"stream.jsonl", "--method", "SAGE_plus"), ("stream", "--follow", w/"stream.jsonl", "--idle", "0")):
        err = refused(*args, "--tools", w/"tools.jsonl", "--out", tmp_path)
        assert "got other files; fix: choose another folder" in err
    assert snapshot(tmp_path) == before

def test_eval_leaves_other_files_alone(w, tmp_path, warm):
    put(tmp_path/"thesis.tex", "precious")
    assert call("eval", "--tools", w/"tools.jsonl", "--samples", w/"test.jsonl", "--methods", "keyword", "--out", tmp_path)[0] == 0
    assert snapshot(tmp_path).keys() == {"thesis.tex", "metrics.json", "predictions.jsonl"} and (tmp_path/"thesis.tex").read_text() == "precious"

def test_out_that_is_where_we_stand(w, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "got the working directory" in refused("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--method", "SAGE_plus", "--out", ".")

# ---- options

@pytest.mark.parametrize("args,words", [
    ("eval --methods magic", "unknown method 'magic'"), ("eval --methods ,", "got no method"), ("eval --methods keyword --seeds 1,x", "--seeds: expected a whole number"), ("eval --methods keyword --seed -1", "--seed: expected a whole number of at least 0"),
    ("eval", "eval needs --methods, or --model"), ("eval --methods SAGE_plus", "pass --train"), ("eval --methods memoriser", "pass --train"), ("eval --methods gorilla", "nothing was run"), ("eval --methods keyword --sample x", "unrecognized arguments: --sample"),
    ("eval --methods keyword -p a=b", "unrecognized arguments: -p"), ("eval --methods keyword surprise", "unrecognized arguments: surprise"),
    ("train", "required: --method"), ("train --method keyword", "expected one trained method, got a baseline"), ("train --method gorilla", "got a llm"), ("train --method magic", "unknown method 'magic'"), ("train --method B_coreset", "got 4"), ("train --method SAGE_plus,one_pass", "got 2"),
    ("train --method SAGE_plus --lr 0", "--lr: expected a number above 0"), ("train --method SAGE_plus --lr nan", "--lr"), ("train --method SAGE_plus --lr -1", "--lr"), ("train --method SAGE_plus --budget 1.5", "up to 1"), ("train --method SAGE_plus --budget 0", "--budget"),
    ("train --method SAGE_plus --checkpoint-every -64", "--checkpoint-every"), ("train --method SAGE_plus --seed 1.5", "--seed"), ("train --method SAGE_plus --seed 99999999999999999999", "--seed"),
    ("stream --method keyword", "got a baseline"), ("stream --method A_baseline", "streaming method"), ("stream --idle -1", "--idle"), ("stream --save-every 0", "--save-every"), ("stream --model m", "pass one of them")])
def test_options(args, words, w, tmp_path, warm):
    command, *rest = args.split(); file = {"eval": "--samples", "train": "--stream", "stream": "--follow"}[command]
    code, out, err = call(command, "--tools", w/"tools.jsonl", file, w/"stream.jsonl", *rest, "--out", tmp_path/"o")
    assert code == 2 and out == "" and words in err and "; fix: " in err and "Traceback" not in err and err.count("\n") == 1 + ("gorilla" in args and command == "eval"), err
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize("args,words", [("", "required: COMMAND"), ("fly", "invalid choice: 'fly'"), ("list planes", "invalid choice: 'planes'"), ("validate", "needs --tools or --samples"), ("stream --out o --follow nothing.jsonl --tools t", "nothing.jsonl: expected a file, got nothing"),
    ("import-tools nothing.json --out o", "nothing.json: expected a JSON file, got nothing"), ("import-tools . --out o", "got a folder"), ("import-dataset nothing --from . --out o", "nothing")])
def test_commands(args, words, w, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*args.split()) and not list(tmp_path.iterdir())

@pytest.mark.parametrize("content,words", [("{}", "a list of tools"), ("[]", "a list of tools"), ("7", "a list of tools"), ('{"tools": [7]}', "field tools[0].name: expected an object with a name, got 7"), ('{"tools": [{"name": "a"}, {"description": "b"}]}', "field tools[1].name"), ('{"tools": [{"name": "a"}, {"name": "a"}]}', "'a' twice"),
    ('{"tools": [{"name": "a", "inputSchema": [1]}]}', "field tools[0].parameters: expected an object, got [1]"), ('{"tools": [\n', ":2: expected JSON"), (b"\xff", "byte 0xff"), ('{"tools": NaN}', "finite"), (deep(300_000), "levels deep"), ("", "expected JSON")])
def test_import_tools(content, words, tmp_path):
    f = put(tmp_path/"a.json", content); put(tmp_path/"t.jsonl", "precious"); before = snapshot(tmp_path)
    err = refused("import-tools", f, "--out", tmp_path/"t.jsonl")
    assert words in err and FORM.match(err), err
    assert snapshot(tmp_path) == before
    if content == "{}": assert "expected a file, got a folder" in refused("import-tools", f, "--out", tmp_path)

# ---- the real process

def test_the_real_process_on_a_narrow_terminal(w, tmp_path):
    "Unwrapped, on standard error, without torch: at once."
    bad = put(tmp_path/"bad.jsonl", row(gold=["nope"], note="a "*200)); env = os.environ | {"COLUMNS": "20", "PYTHONWARNINGS": "ignore"}
    p = subprocess.run([SAGE_BENCH, "train", "--tools", w/"tools.jsonl", "--stream", bad, "--method", "SAGE_plus", "--out", "o"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert p.returncode == 2 and p.stdout == ""
    complaint(p.stderr.splitlines()[-1], bad, 1, "gold", "unknown tool 'nope'"); assert len(p.stderr.splitlines()) == 1, p.stderr
    p = subprocess.run([SAGE_BENCH, "eval", "--sampels", "x"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert p.returncode == 2 and len(p.stderr.splitlines()) == 1 and "sage-bench eval" in p.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]

def test_a_backbone_that_is_none(w, tmp_path, monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path/"empty").mkdir(); put(tmp_path/"empty"/"config.json", "{}"); before = snapshot(tmp_path)
    for name in (tmp_path/"nope", tmp_path/"empty", "nobody/nope"):
        err = refused("train", "--tools", w/"tools.jsonl", "--stream", w/"stream.jsonl", "--method", "one_pass", "--backbone", name, "--out", tmp_path/"o")
        assert err.startswith(f"--backbone {name}: expected a local model folder or a hub id") and "; fix: " in err
    assert snapshot(tmp_path) == before
