"Records give the generated files, the generated files give the paper, and nothing stale gets through."
import shutil
import subprocess

import pytest

from sage_repro.core.config import repo_root
from sage_repro.paper import report

ROOT = repo_root()


@pytest.fixture
def tree(tmp_path):
    "A copy of what the paper needs."
    for d in ("paper", "results/records", "data", "sage_repro"):
        shutil.copytree(ROOT / d, tmp_path / d, ignore=shutil.ignore_patterns("build", "__pycache__"))
    shutil.copy(ROOT / "settings.ini", tmp_path)
    return tmp_path


def test_committed_records_and_generated_files_belong_together():
    assert report.committed_records(ROOT), "no committed record"
    assert report.verify(ROOT) == 0


def test_records_are_publishable():
    for r in report.committed_records(ROOT).values():
        assert r.publishable and r.source["commit"], r.experiment


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_stale_or_missing_table_stops_the_build(tree, damage, capsys):
    f = tree / "paper" / "generated" / "macros.tex"
    f.write_text(f.read_text().replace("SAGE", "SAGA", 1) + "%") if damage == "change" else f.unlink()
    assert report.build_paper(required=True, root=tree) == 1
    assert "macros.tex in paper/generated missing or stale" in capsys.readouterr().err
    assert not (tree / "paper" / "build" / "main.pdf").exists()


def test_without_tex_it_says_what_to_install(tree, monkeypatch, capsys):
    monkeypatch.setattr(report.shutil, "which", lambda _: None)
    assert report.build_paper(required=False, root=tree) == 0
    assert "PDF: not built, run: apt-get install" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="no TeX here; CI installs it")
def test_the_paper_compiles(tree):
    assert report.build_paper(required=True, root=tree) == 0
    pdf = tree / "paper" / "build" / "main.pdf"
    info = subprocess.run(["pdfinfo", pdf], capture_output=True, text=True).stdout if shutil.which("pdfinfo") else "Pages: 9"
    assert pdf.stat().st_size > 50_000 and int(info.split("Pages:")[1].split()[0]) >= 3
    log = (tree / "paper" / "build" / "main.log").read_text(errors="replace")
    assert "Undefined control sequence" not in log and "Citation `" not in log and "Reference `" not in log


def test_the_report_shows_every_claim(capsys):
    records = report.committed_records(ROOT)
    view = report.claims_view(records)
    assert {"not run", "not reproduced"} <= set(view["verdict"]) and (view.loc[view["verdict"] == "not run", "n"] == "").all()
    page = report.report_html(records)
    assert "SAGE+" in page and page.count("<table") >= 5 and "Where the numbers come from" in page
    report._print_claims(records)
    assert "measured [95 % interval]" in capsys.readouterr().out


def test_no_number_is_typed_in_the_results():
    "Percentages and decimals in the prose of the results come from macros."
    import re
    for name in ("abstract", "claims", "measurements", "bench"):
        f = ROOT / "paper" / "sections" / f"{name}.tex"
        if f.is_file():
            text = re.sub(r"%.*|\\result\{[^}]*\}|\\(?:ref|label|cite\w*|input|generatedtable)\{[^}]*\}", "", f.read_text())
            assert not re.findall(r"\d+\.\d|\d+\s*\\%", text), f


def test_the_front_page_is_in_step():
    assert (ROOT / "README.md").read_text() == report.render_readme(ROOT), "run: make readme"
