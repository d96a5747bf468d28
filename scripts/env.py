"""Make `.venv` from the lock, or the lock from `pyproject.toml`; the standard library is all it needs.

    python3 scripts/env.py            what `make env` runs; it says at once when there is nothing to do
    python3 scripts/env.py lock       what `make lock` runs; `--upgrade` moves every pin to its newest release

`constraints.txt` has two sections. The first is for everybody. The second, below `MARK`, is torch and the packages that
only its CUDA build needs: which build pip would bring is asked of pip beforehand, because on a machine without a GPU
a CUDA build costs gigabytes for nothing. torch files that are no part of the package index (the CPU builds) are known
by `scripts/torch.json`. A file whose sha256 is in neither is not installed, except from an index the person named.
"""
import sys

if sys.version_info < (3, 11):
    sys.exit("python3 must be 3.11 or newer, got %d.%d; name another: make env PYTHON=python3.12" % sys.version_info[:2])

import argparse, hashlib, json, os, re, shutil, subprocess, tempfile, time, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, PROJECT, TORCH = ROOT/"constraints.txt", ROOT/"pyproject.toml", ROOT/"scripts"/"torch.json"
VENV = ROOT/".venv"
STAMP = VENV/"sage_repro.json"
MARK = "# ---- torch and its CUDA build: installed apart by scripts/env.py ----"
UV = "uv==0.13.8" # resolves the lock, in a throwaway environment

# ---- the lock, read

def pins(
    text, # requirements with hashes, as in constraints.txt
): # {name: (version, block of lines)}; a name that is pinned differently for different Pythons keeps each block
    "The pinned packages of a piece of the lock, by canonical name."
    blocks = re.findall(r"^[A-Za-z0-9](?:.*\\\n)*.*$", text, re.M)
    out = {}
    for b in blocks:
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", b).groups()
        out.setdefault(canonical(name), []).append((version, b))
    return out

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def sections():
    "The lock's two sections as text: for everybody, and torch with its CUDA packages."
    common, apart = LOCK.read_text().split(MARK)
    return common, apart

def is_cuda(name): # canonical
    "Whether a package belongs to torch's CUDA build only."
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"

def known_torch():
    "sha256 of every torch file that may be installed without asking."
    return set(json.loads(TORCH.read_text())["cpu_builds"].values()) | set(re.findall(r"sha256:(\w{64})", pins(sections()[1])["torch"][0][1]))

# ---- doing

def step(n, text): # prints without a newline; returns a function that prints the seconds
    print(f"[{n}/5] {text}", end=" ... ", flush=True)
    t = time.time()
    return lambda note="": print(f"{time.time()-t:.0f} s{note}", flush=True)

def new_venv(path):
    "A fresh virtual environment of this Python, with pip."
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)]).returncode:
        sys.exit("python3 could not make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv")

def run_pip(*args, quiet=True):
    "pip of the new environment; stops with pip's own words when it fails."
    cmd = [str(VENV/"bin"/"python"), "-m", "pip", "--no-input", "--disable-pip-version-check", *(["-qq"] if quiet else []), *args]
    if subprocess.run(cmd, cwd=ROOT).returncode: sys.exit(f"\npip {args[0]} failed (its reason is above); mend that and repeat `make env`")

def install(text, *args, quiet=True):
    "Install requirements with hashes, and nothing that they do not name."
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/"requirements.txt"
        f.write_text(text)
        run_pip("install", "--no-deps", "--require-hashes", "-r", str(f), *args, quiet=quiet)

def has_gpu():
    "Whether an NVIDIA GPU answers."
    if not shutil.which("nvidia-smi"): return False
    return subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60).stdout.startswith(b"GPU ")

def ask_pip(version, index):
    "What pip would bring for torch: {canonical name: (version, sha256)}; nothing is installed."
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/"report.json"
        run_pip("install", "--dry-run", "--ignore-installed", "--report", str(f), f"torch=={version}", *index)
        items = json.loads(f.read_text())["install"]
    return {canonical(i["metadata"]["name"]): (i["metadata"]["version"], sha_of(i["download_info"]["archive_info"])) for i in items}

def sha_of(info): # archive_info of a pip report; older pips write only "hash"
    return info.get("hashes", {}).get("sha256") or info["hash"].split("=", 1)[1]

NO_GPU = """
There is no NVIDIA GPU here, and the package index offers torch {version} only as a CUDA build: with the {n} packages it
brings, that is a download of about 3 GB, and 4 GB on disk. It works on the CPU as well. The CPU build is about 0.2 GB:
PyTorch's own install page shows the address of its index under "CPU"; to use it, say
    make env TORCH_INDEX=<that address>
"""

def choose(
    found, # what ask_pip said
    gpu, # whether a GPU answers
    index, # whether the person named an index for torch
    ask, # TORCH=ask: never take the CUDA build without a yes
):
    "Say what is unexpected about the torch that pip would bring; stop where its file is unknown or the person says no."
    version, sha = found["torch"]
    cuda = [n for n in found if is_cuda(n)]
    if sha not in known_torch():
        who = f"torch {version}, sha256 {sha}, is not a file that constraints.txt or scripts/torch.json knows"
        if not index: sys.exit(f"\n{who}; if you trust where pip found it, add its sha256 to scripts/torch.json and repeat `make env`")
        print(f"\nnote: {who}; taken, because TORCH_INDEX names its source", flush=True)
    if gpu and not cuda and sys.platform == "linux":
        print(f"\nnote: an NVIDIA GPU is here, but pip finds torch {version}, a CPU build; for a CUDA build: make env TORCH_INDEX=<the address "
              "on PyTorch's install page for your CUDA version>", flush=True)
    if gpu or not cuda: return
    print(NO_GPU.format(version=version, n=len(cuda)), flush=True)
    if not ask: return print("Going on with the CUDA build (TORCH=ask would have asked).", flush=True)
    if not sys.stdin.isatty() or not input("Go on with the CUDA build? [y/N] ").lower().startswith("y"):
        sys.exit("stopped: TORCH=ask is set and nobody said yes to the CUDA build")

def install_torch(found, index):
    "Install the torch that was found, by its hash; its CUDA packages by the lock where the lock has just those."
    version, sha = found["torch"]
    locked = pins(sections()[1])
    cuda = {n for n in found if is_cuda(n)}
    text = f"torch=={version} --hash=sha256:{sha}\n"
    if all(found[n][0] in [v for v, _ in locked.get(n, [])] for n in cuda):
        return install(text + "".join(b + "\n" for n in sorted(cuda) for _, b in locked[n]), *index, quiet=not cuda)
    install(text, *index, quiet=False)
    print("note: this torch wants other CUDA packages than the lock has; they are installed without a hash check", flush=True)
    run_pip("install", f"torch=={version}", *index, quiet=False)

def digest(*paths):
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()

def install_project():
    "The project itself, editable, built by the locked setuptools; then pip's own check that nothing is missing."
    run_pip("install", "--no-deps", "--no-build-isolation", "-e", ".")
    r = subprocess.run([str(VENV/"bin"/"python"), "-m", "pip", "check"], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: sys.exit(f"\n{r.stdout}constraints.txt does not satisfy pyproject.toml: run `make lock`, then `make env`")

def make_env():
    "Bring .venv in line with the lock; written last, the stamp says that all of it is there."
    have = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    address = os.environ.get("TORCH_INDEX") or have.get("index", "") # once chosen, an index for torch stays
    index = ["--index-url", address] if address else []
    want = dict(lock=digest(LOCK, TORCH), project=digest(PROJECT), python=f"{sys.version.split()[0]} {sys.base_prefix}", root=str(ROOT), index=address)
    stale = {k for k in want if have.get(k) != want[k]}
    if not stale: return print(f"environment is up to date: .venv, torch {have['torch']}")
    if stale == {"project"}: # the lock stands: only names and commands of the project itself can have changed
        print("pyproject.toml changed: installing the project again", flush=True)
        install_project()
        return STAMP.write_text(json.dumps({**have, **want}))
    build_env(want, index)

def build_env(want, index):
    "A new .venv: half of an old one is worth nothing, since a killed pip leaves packages that only look whole."
    start, version = time.time(), json.loads(TORCH.read_text())["version"]
    common = sections()[0]
    STAMP.unlink(missing_ok=True)
    done = step(1, f"new environment .venv, Python {want['python'].split()[0]}")
    new_venv(VENV)
    install("".join(b + "\n" for _, b in pins(common)["pip"]))
    done()
    done = step(2, f"looking which torch {version} pip would bring")
    found = ask_pip(version, index)
    choose(found, has_gpu(), bool(index), os.environ.get("TORCH") == "ask")
    done(f", torch {found['torch'][0]}")
    done = step(3, f"{len(pins(common))} locked packages, hash-checked")
    install(common)
    done()
    done = step(4, f"torch {found['torch'][0]}, hash-checked")
    install_torch(found, index)
    done()
    done = step(5, "the project itself, editable")
    install_project()
    done()
    STAMP.write_text(json.dumps({**want, "torch": found["torch"][0]}))
    print(f"environment ready in {time.time()-start:.0f} s: .venv, torch {found['torch'][0]}")

# ---- the lock, written

HEADER = """\
# The lock: every package of the environment with its version and the sha256 of each of its files; no addresses.
# Written by `make lock` from pyproject.toml, for Python 3.11 and newer on any platform. Not edited by hand.
"""

def resolve(
    upgrade, # False keeps the present pins where pyproject.toml allows them
): # requirements with hashes, as uv writes them
    "Resolve all dependencies and extras of the project, with pip and the build's own requirements."
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        new_venv(d/"venv")
        subprocess.run([str(d/"venv"/"bin"/"python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq", UV], check=True)
        build = tomllib.loads(PROJECT.read_text())["build-system"]["requires"]
        (d/"more.in").write_text("\n".join([*build, "pip", "torch==" + json.loads(TORCH.read_text())["version"]]) + "\n")
        out = d/"out.txt"
        if LOCK.exists() and not upgrade: shutil.copy(LOCK, out)
        subprocess.run([str(d/"venv"/"bin"/"uv"), "pip", "compile", "-q", str(PROJECT), str(d/"more.in"), "--all-extras", "--universal",
                        "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url",
                        "--no-emit-find-links", "-o", str(out)], check=True, cwd=d)
        return out.read_text()

def make_lock(upgrade):
    "Write constraints.txt: what everybody installs, then torch and the packages of its CUDA build."
    found = pins(resolve(upgrade))
    block = lambda names: "".join(b + "\n" for n in sorted(names) for _, b in found[n])
    apart = {n for n in found if n == "torch" or is_cuda(n)}
    text = HEADER + block(found.keys() - apart) + MARK + "\n" + block(apart)
    if "://" in text: sys.exit("the resolver wrote an address into the lock; constraints.txt is left as it was")
    new = LOCK.with_suffix(".tmp")
    new.write_text(text)
    new.replace(LOCK)
    print(f"{LOCK.name}: {len(found)} packages, {len(apart)} of them with torch's CUDA build")

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", nargs="?", choices=["env", "lock"], default="env")
    p.add_argument("--upgrade", action="store_true", help="lock: move every pin to its newest release")
    a = p.parse_args()
    make_lock(a.upgrade) if a.what == "lock" else make_env()

if __name__ == "__main__": main()
