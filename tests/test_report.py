"""The report of a run: what is in it, that nothing in a file becomes markup, and how it behaves in a browser."""
import base64
import csv
import gzip
import io
import json
import re
import shutil
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import report
from eci_sem.collection import InputError
from eci_sem.figures import ranking_bars, save_figure, save_table
from eci_sem.report import read_run, write_report
from eci_sem.download import digest
from eci_sem.verdicts import CLAIMS

HOSTILE = "<script>alert(1)</script>"
META = dict(parameters=dict(seed=0))


def make_cell(base, name, notebook=None, key="0123456789abcdef", status="ok", started="2026-01-02T03:04:05+00:00", **more):
    "A folder as the runner leaves it; the files are already in it, or none are."
    folder = base / f"{name}-{key[:12]}{'.failed' if status == 'failed' else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {p.relative_to(folder).as_posix(): dict(sha256=digest(p, "sha256"), bytes=p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"}
    m = dict(cell=name, profile="tiny", status=status, key=key, notebook=f"nbs/experiments/{notebook or name}.ipynb", parameters=dict(seed=3, out="x"), seeds=dict(seed=3), notebook_sha256="ab" * 32, package_sha256="cd" * 32,
        versions=dict(python="3.11.7", numpy="2.0"), result=None, started=started, seconds=1.5, files=files) | more
    (folder / "manifest.json").write_text(json.dumps(m))
    return folder


def notebook(*outputs, source="x = 1  # a comment", text="# Title\n\n> What it is.\n\n### Skips a level\n\nA [link](https://arxiv.org/abs/2603.20990) and [another](other.ipynb)."):
    cell = dict(cell_type="code", id="b", metadata={}, execution_count=1, source=source, outputs=[dict(output_type="display_data", metadata={}, data=o) for o in outputs])
    return json.dumps(dict(cells=[dict(cell_type="markdown", id="a", metadata={}, source=text), cell], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")), nbformat=4, nbformat_minor=5))


def rows(n): return pd.DataFrame(dict(name=[f"row {i}" for i in range(n)], value=[(i * 37 % n) / 7 for i in range(n)], group=[("a", "b,c", 'd"e')[i % 3] for i in range(n)], some=[i if i % 4 else None for i in range(n)]))


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    "A run with a finished claim, a long table, a figure, a notebook, an older result, and a failure; hostile names in all places that hold text."
    base = tmp_path_factory.mktemp("runs") / "tiny"
    folder = base / "ranking-0123456789ab"
    folder.mkdir(parents=True)
    a, b = "LLM highest of the single sources", "Dense+LLM highest of the hybrids"
    pd.DataFrame([dict(encoder=f"glove {HOSTILE}", metric="ECI_sem", **{a: "holds", b: "holds"})]).to_csv(folder / "claims.csv", index=False)
    table = pd.DataFrame([dict(encoder="glove", source=s, kind="source", value=v, lo=v - 0.01, hi=v + 0.01, rank=1, n=60) for s, v in (("bm25", 0.1), ("dense", 0.3))])
    png, *_ = save_figure(ranking_bars(table), table, "bars", folder, META)
    save_table(rows(250), "long", folder, META)
    save_table(rows(12).rename(columns={"name": HOSTILE}).assign(text=f"{HOSTILE} & \"x\""), "short", folder, META)
    save_table(rows(3), "packed_only", folder, META, csv=False)
    png = base64.b64encode(png.read_bytes()).decode()
    (folder / "notebook.ipynb").write_text(notebook({"text/html": f"<table onclick='x()'><tr><td>{HOSTILE}5</td></tr></table></div></div><svg><p>lost"}, {"image/png": png, "text/plain": "<Figure>"}, {"text/plain": HOSTILE},
        {"text/markdown": "<img src=x onerror=alert(1)> [j](javascript:alert(1))"}, {"application/javascript": "alert(1)", "text/plain": "script"}))
    make_cell(base, "ranking")
    make_cell(base, "ranking", key="f" * 16, started="2026-01-01T00:00:00+00:00")
    failed = base / "validity/small-0123456789ab.failed"
    failed.mkdir(parents=True)
    (failed / "log.txt").write_text(f"one\rtwo\n{HOSTILE}\n")
    (failed / "notebook.ipynb").write_text(notebook(source="1/0"))
    make_cell(base, "validity/small", "validity", status="failed", started="2026-01-03T00:00:00+00:00", error=f"ValueError: {HOSTILE} (code cell 2)", parameters={HOSTILE: HOSTILE})
    return base


@pytest.fixture(scope="module")
def page(batch, tmp_path_factory): return write_report(batch, tmp_path_factory.mktemp("out") / "report.html", title=f"A run {HOSTILE}")


@pytest.fixture(scope="module")
def committed(root, tmp_path_factory): return write_report(root / "figures", tmp_path_factory.mktemp("out") / "figures.html")


class Read(HTMLParser):
    "Tags with attributes, and the text by the tag it stands in."
    def __init__(self, text): super().__init__(); self.tags, self.texts, self.open = [], [], []; self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "hr", "input"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.texts.append((self.open[-1] if self.open else "", data))
    def all(self, tag): return [a for t, a in self.tags if t == tag]


# what is read

def test_the_latest_result_counts_and_failures_are_there(batch):
    cells, older = read_run(batch)
    assert [(c.name, c.state, c.notebook, c.run) for c in cells] == [("ranking", "ok", "ranking", "0123456789ab"), ("validity/small", "failed", "validity", "0123456789ab")]
    assert older == ["ranking-ffffffffffff"] and not any(c.warnings for c in cells)


@pytest.mark.parametrize("change, says", [
    (lambda m: "[1]", "not a manifest of a run"), (lambda m: m[:-9], "not a manifest of a run"),
    (lambda m: json.dumps({k: v for k, v in json.loads(m).items() if k not in ("key", "status")}), "a broken manifest, without key, status as text"),
    (lambda m: json.dumps(json.loads(m) | {"files": {"a.csv": 3}}), "files should map each name to its sha256 and bytes"),
    (lambda m: json.dumps(json.loads(m) | {"files": {"../b/secret.csv": dict(sha256="", bytes=1)}}), r"names a file outside its folder \(\.\./b/secret.csv\)")])
def test_a_broken_manifest_is_named(tmp_path, change, says):
    path = make_cell(tmp_path, "a") / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=f"a-0123456789ab/manifest.json: .*{says}.*; run that cell again"): read_run(tmp_path)


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(InputError, match="no such folder; expected one of a run"): write_report(tmp_path / "none")
    with pytest.raises(InputError, match="nothing is finished in it .*reproduce"): write_report(tmp_path)
    (tmp_path / "tiny/.a-1.part").mkdir(parents=True); (tmp_path / "tiny/.a-1.part/manifest.json").write_text("{")
    with pytest.raises(InputError, match="nothing is finished"): write_report(tmp_path / "tiny") # what a run at work has there
    make_cell(tmp_path / "tiny", "a")
    with pytest.raises(InputError, match=f"holds the runs of whole profiles; name one: .*{tmp_path.name}/tiny"): write_report(tmp_path)
    with pytest.raises(InputError, match="a folder; name the file to write, such as .*report.html"): write_report(tmp_path / "tiny", tmp_path)
    with pytest.raises(InputError, match="nofigures: no such folder; expected one of committed results"): write_report(tmp_path / "tiny", figures="nofigures")
    with pytest.raises(InputError, match="the folder of one cell; name the run's folder"): write_report(tmp_path / "tiny/a-0123456789ab")
    assert write_report(tmp_path / "tiny") == tmp_path / "tiny/report.html"


def test_files_that_are_not_those_of_the_manifest_are_named(tmp_path):
    folder = tmp_path / "a-0123456789ab"; folder.mkdir()
    for name in ("same.csv", "other.csv", "gone.csv"): (folder / name).write_text("x,y\n1,2\n")
    make_cell(tmp_path, "a")
    (folder / "other.csv").write_text("x,y\n1,3\n"); (folder / "gone.csv").unlink()
    (cell,), _ = read_run(tmp_path)
    assert cell.warnings == ("gone.csv is in the manifest and not in the folder", "other.csv is not the file of the manifest: it was changed after the run")
    assert all(w in write_report(tmp_path).read_text() for w in cell.warnings)


def test_damaged_files_leave_a_note_and_the_rest_stands(tmp_path):
    folder = tmp_path / "agreement-0123456789ab"; folder.mkdir()
    for name, data in {"bad.parquet": b"PAR1nothing", "empty.csv": b"", "ragged.csv": b"x,y\n1\n1,2,3\n", "latin.csv": b"x\n\xe9\n", "header.csv": b"x,y\n", "pooled.csv": b"x\n1\n", "odd.png": b"no image", "odd.json": b"[", "notebook.ipynb": b"{}", "recommendation.json": b"["}.items(): (folder / name).write_bytes(data)
    make_cell(tmp_path, "agreement")
    text = write_report(tmp_path).read_text()
    for said in ("bad.parquet can&#x27;t be read", "empty.csv is empty", "It has no rows: x, y", "The verdicts can&#x27;t be read from the tables: agreement: a table of that folder lacks", "The executed notebook can&#x27;t be read"): assert said in text, said
    assert ">ragged<" in text and "<td class=n>1</td><td class=n></td>" in text


def test_a_table_too_long_for_a_page_is_read_only_at_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ALL_ROWS", 150); monkeypatch.setattr(report, "LONG_CSV", 2000)
    folder = tmp_path / "a-0123456789ab"; folder.mkdir()
    rows(200).to_csv(folder / "long.csv", index=False); rows(200).to_parquet(folder / "packed.parquet"); rows(150).to_parquet(folder / "fits.parquet")
    make_cell(tmp_path, "a")
    text = write_report(tmp_path).read_text()
    for name in ("long.csv", "packed.parquet"): assert f"The first {report.SHOWN_ROWS} of 200 rows. The whole table is too long for this page: {name} in the run&#x27;s folder." in text
    assert "Save fits.csv.gz" in text and 'data-rows="150"' in text and text.count("download=") == 1


# what is written

def test_one_file_that_needs_nothing(page):
    text = page.read_text()
    doc = Read(text)
    (policy,) = (m["content"] for m in doc.all("meta") if m.get("http-equiv"))
    assert re.fullmatch(r"default-src 'none'; script-src 'sha256-[\w+/=]+'; style-src 'sha256-[\w+/=]+' 'sha256-[\w+/=]+'; img-src data:; base-uri 'none'; form-action 'none'", policy)
    assert not [a for a in doc.all("img") if not a["src"].startswith("data:image/")] and not [a for a in doc.all("link") if a["href"] != "data:,"]
    assert all(a["alt"] for a in doc.all("img")) and doc.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in doc.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {a["href"][1:] for a in doc.all("a") if a["href"].startswith("#")} <= set(ids)
    levels = [int(t[1]) for t, _ in doc.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))


def test_nothing_in_a_file_becomes_markup(page):
    doc = Read(page.read_text())
    assert len(doc.all("script")) == 1 and not [a for _, a in doc.tags if any(k.startswith("on") or k == "style" for k in a)]
    assert not [a for a in doc.all("a") if not re.match("#|https?://|data:application/gzip", a["href"])]
    shown = [(tag, text.strip()) for tag, text in doc.texts if "alert(1)" in text and tag != "script"]
    places = {tag for tag, _ in shown}
    assert places >= {"title", "h1", "th", "td", "pre", "li", "p"} and all("<script>" in text or tag == "p" for tag, text in shown)
    assert not any("lost" == text.strip() for _, text in doc.texts) and ("h3", "ranking") in doc.texts # an open svg of an output swallows its own rest only


def test_the_same_run_gives_the_same_bytes_and_a_failure_leaves_the_old_file(batch, page, tmp_path, monkeypatch):
    again = write_report(batch, tmp_path / "r.html", title=f"A run {HOSTILE}")
    assert again.read_bytes() == page.read_bytes()
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError): write_report(batch, again, title="other")
    assert again.read_bytes() == page.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_images_keep_their_pixels(batch, page):
    from PIL import Image
    (uri,) = {a["src"] for a in Read(page.read_text()).all("img")} # the notebook shows the same figure: once in the bytes that count
    small = base64.b64decode(uri.partition(",")[2])
    original = batch / "ranking-0123456789ab/bars.png"
    one, two = (Image.open(f).convert("RGBA") for f in (io.BytesIO(small), original))
    assert one.size == two.size and one.tobytes() == two.tobytes() and len(small) < original.stat().st_size


def test_a_figure_says_what_it_shows(page):
    alts = [a["alt"] for a in Read(page.read_text()).all("img")]
    assert alts == ["Bars with intervals and rank groups, one panel per encoder (and row per metric). Shown: encoder glove; source bm25, dense; kind source. Its values are in the table below it.", "Image shown by code cell 1 of the notebook ranking"]


def test_packed_tables_are_those_of_the_run(batch, page):
    links = {a["download"]: gzip.decompress(base64.b64decode(a["href"].partition(",")[2])) for a in Read(page.read_text()).all("a") if "download" in a}
    assert set(links) == {"claims.csv.gz", "bars.csv.gz", "long.csv.gz", "short.csv.gz", "packed_only.csv.gz"}
    assert links["long.csv.gz"] == (batch / "ranking-0123456789ab/long.csv").read_bytes()
    assert list(csv.reader(io.StringIO(links["packed_only.csv.gz"].decode())))[0] == ["name", "value", "group", "some"]


def test_the_committed_results_make_a_report(root, committed):
    text = committed.read_text()
    assert "executed notebooks are in the folders of runs only" in text and "No score is recommended" in text
    doc = Read(text)
    assert {f"claim-{n}" for n in CLAIMS} <= {a.get("id") for a in doc.all("section")} and len(doc.all("h3")) > len(list((root / "figures").glob("**/manifest.json")))
    assert all(len(a["alt"]) > 60 for a in doc.all("img")) and len(doc.all("img")) == len(list((root / "figures").rglob("*.png")))
    assert not read_run(root / "figures")[1] and not any(c.warnings for c in read_run(root / "figures")[0])
    assert committed.stat().st_size < 12e6


def test_the_pieces_of_the_page_are_installed(root):
    assert "recursive-include eci_sem/data *" in (root / "MANIFEST.in").read_text() and "include_package_data=True" in (root / "setup.py").read_text()
    assert {p.name for p in (root / "eci_sem/data/report").iterdir()} == {"page.html", "report.css", "report.js"}
    assert "</script" not in report._part("report.js") and "</style" not in report._part("report.css") and "http" not in report._part("report.css") + report._part("report.js")


# escaping and cleaning, by property

@settings(max_examples=60)
@given(st.text(), st.text())
def test_text_comes_back_as_it_was(text, value):
    doc = Read(f"<i>{report._el('p', text, title=value)}</i>".replace("\r", ""))
    assert doc.tags[1] == ("p", {"title": value.replace("\r", "")}) and "".join(t for _, t in doc.texts) == text.replace("\r", "")


PIECES = ["<script>", "</script>", "<svg>", "</svg>", "<p>", "</p>", "<table>", "</table>", "<td colspan=2 style='x'>", "<h1 id=main>", "</h1>", "<h4>", "<a href='javascript:x()'>", "<a href=https://x.org onclick=y>", "</a>", "<img src=x onerror=y>", "<img src='data:image/png;base64,QUJD'>",
    "<style>", "<!--", "-->", "<![CDATA[", "<div class='page skip k'>", "</div>", "text", "&lt;b&gt;", "&", "<", "<iframe srcdoc='<script>'>", "<br/>", "<textarea>", "<b", "<math><mtext>", "\"'>", "<p/onclick=z>"]

@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join))
def test_what_is_cleaned_holds_only_harmless_things(markup):
    doc = Read(report._clean(markup))
    assert not doc.open and {t for t, _ in doc.tags} <= report._KEPT_TAGS and not {"h1", "h2", "h3", "h4"} & {t for t, _ in doc.tags}
    allowed = {"class", "colspan", "rowspan", "href", "rel", "src", "alt", "tabindex", "role", "aria-label"}
    for tag, a in doc.tags:
        assert set(a) <= allowed and not {"page", "skip"} & set(a.get("class", "").split())
        assert re.match("https?://", a.get("href", "http://")) and re.match("data:image/", a.get("src", "data:image/"))


def test_an_empty_heading_is_a_plain_cell(): assert report._clean("<table><tr><th></th><th colspan=2></th><th>x</th></tr></table>").count("<td") == 2 and report._clean("<th>x</th>") == "<th>x</th>"


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
def test_numbers_are_rounded_and_keep_their_order(values):
    texts = [repr(v) for v in values]
    decimals = report._decimals(texts)
    for text, value in zip(texts, values): assert abs(float(report._shown(text, decimals)) - value) <= (0.51 * 10.0 ** -decimals if decimals is not None and abs(value) < 1e15 else 6e-4 * abs(value))


def test_numbers_by_hand():
    assert report._decimals(["0.1234567", "0.02"]) == 4 and report._decimals(["1", "20"]) is None and report._decimals(["1e-9", "1.5"]) is None and report._decimals(["1.0", "20.0"]) == 0
    assert [report._shown(x) for x in ("0.1635670", "0.00001234567", "1234567", "123456.789", "bm25", "", "-0.00000000")] == ["0.1636", "1.235e-5", "1234567", "123457", "bm25", "", "0"]
    assert report._shown("2", 3) == "2.000" and report._shown("", 3) == ""


# in a browser

@contextmanager
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
    if not (path := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")): pytest.skip("no Chromium on this machine: no browser test")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"])
        try: yield browser
        finally: browser.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as b: yield b


@pytest.fixture
def opened(browser):
    "Opens a file; at the end nothing may have been said on the console or asked of a network."
    contexts, bad = [], []
    def open_(path, width=1280, height=900, **options):
        contexts.append(browser.new_context(viewport=dict(width=width, height=height), accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda m: bad.append(m.text)); page.on("pageerror", lambda e: bad.append(str(e))); page.on("dialog", lambda d: (bad.append("a dialog"), d.dismiss()))
        page.on("request", lambda r: None if re.match("file:|data:|blob:", r.url) else bad.append(r.url))
        page.goto(path.as_uri())
        return page
    yield open_
    for c in contexts: c.close()
    assert not bad, bad


def column(table, i): return table.locator("tbody tr:visible").evaluate_all(f"rows => rows.map(r => r.cells[{i}].textContent)")


def opened_table(page, name):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    return page.locator(f"table[aria-label='{name}']")


def test_tables_sort_by_click_and_by_key(opened, page):
    p = opened(page)
    p.goto(page.as_uri() + "#claim-1")
    table = opened_table(p, "short of ranking")
    head, numbers = table.locator("th").nth(1), rows(12)["value"].tolist()
    given = column(table, 1)
    assert [float(x) for x in given] == pytest.approx(numbers, abs=1e-3)
    head.locator("button").click()
    assert column(table, 1) == sorted(given, key=float) and head.get_attribute("aria-sort") == "ascending" and "sorted by value, ascending" in p.locator(".announce").text_content()
    head.locator("button").focus()
    p.keyboard.press("Enter")
    assert column(table, 1) == sorted(given, key=float, reverse=True) and head.get_attribute("aria-sort") == "descending"
    p.keyboard.press("Space")
    assert column(table, 1) == given and head.get_attribute("aria-sort") == "none"
    p.keyboard.press("Tab"); p.keyboard.press("Enter") # the next column: text
    assert column(table, 2) == sorted(column(table, 2)) and head.get_attribute("aria-sort") == "none"
    p.keyboard.press("Tab"); p.keyboard.press("Enter"); p.keyboard.press("Enter") # numbers with gaps: the gaps stand last either way
    assert column(table, 3)[-3:] == ["", "", ""] and [float(x) for x in column(table, 3)[:-3]] == [11, 10, 9, 7, 6, 5, 3, 2, 1]


def test_tables_filter_and_show_all_their_rows(opened, batch, page):
    p = opened(page)
    p.goto(page.as_uri() + "#claim-1")
    table = opened_table(p, "long of ranking")
    box = p.locator(".data", has=table)
    before, whole = [column(table, i) for i in range(4)], rows(250)
    assert len(before[0]) == report.SHOWN_ROWS and f"The first {report.SHOWN_ROWS} of 250 rows" in box.locator(".more").text_content()
    field = box.get_by_label("Filter rows of long of ranking")
    field.fill('ROW d"e')
    assert column(table, 0) == [n for n, g in zip(whole["name"][:report.SHOWN_ROWS], whole["group"]) if g == 'd"e'] and f"of {report.SHOWN_ROWS} rows" in box.locator(".count").text_content()
    box.get_by_role("button", name="Show all 250 rows").click()
    p.wait_for_function("t => t.tBodies[0].rows.length === 250", arg=table.element_handle())
    assert column(table, 0) == [n for n, g in zip(whole["name"], whole["group"]) if g == 'd"e']
    field.fill("")
    after = [column(table, i) for i in range(4)]
    assert [c[:report.SHOWN_ROWS] for c in after] == before and len(after[0]) == 250 and after[2] == whole["group"].tolist() # rounded there as here
    table.locator("th button").nth(1).click()
    assert table.locator("tbody tr").evaluate_all("rows => rows.map(r => parseFloat(r.cells[1].dataset.v ?? r.cells[1].textContent))") == sorted(whole["value"])
    with p.expect_download() as d: box.locator("a[download]").click()
    assert d.value.suggested_filename == "long.csv.gz" and gzip.decompress(Path(d.value.path()).read_bytes()) == (batch / "ranking-0123456789ab/long.csv").read_bytes()


def test_every_link_within_the_page_leads_somewhere(opened, page):
    p = opened(page)
    assert p.locator(".page:visible").count() == 1 and p.locator("#overview").is_visible()
    hrefs = p.locator("a[href^='#']").evaluate_all("a => [...new Set(a.map(x => x.getAttribute('href')))]")
    assert {"#claim-1", "#cell-ranking", "#cell-validity-small", "#provenance", "#main"} <= set(hrefs)
    for href in hrefs:
        p.locator(f"a[href='{href}']").first.evaluate("a => a.click()")
        p.wait_for_function("h => location.hash === h && !document.querySelector(h).closest('[hidden]')", arg=href)
        assert p.locator(href).is_visible() and p.locator(".page:visible").count() == 1
    p.goto(page.as_uri())
    p.keyboard.press("Tab"); p.keyboard.press("Enter") # the first thing a keyboard reaches: past the contents
    p.wait_for_function("document.activeElement.id === 'main'")
    p.locator(".contents a", has_text="Claim 1").click()
    # the address changes at the click, the page when the browser has told of it: a moment later
    p.locator("#claim-1:visible").wait_for()
    assert p.locator(".contents a[aria-current=page]").text_content() == "Claim 1 ranking" and "Claim 1: " in p.title()
    p.go_back(); p.go_back()
    p.locator("#overview:visible").wait_for()


def test_it_reads_on_a_phone(opened, page, committed):
    for path in (page, committed):
        p = opened(path, 390, 844)
        for name in p.locator(".page").evaluate_all("s => s.map(x => x.id)"):
            p.evaluate("name => { location.hash = name; }", name)
            p.wait_for_function("name => !document.getElementById(name).hidden", arg=name)
            if path == page: p.evaluate("document.querySelectorAll('.page:not([hidden]) details').forEach(d => d.open = true)")
            assert p.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        assert p.evaluate("parseFloat(getComputedStyle(document.querySelector('.page p')).fontSize)") >= 13


def test_boxes_that_scroll_are_reached_by_key_and_no_others(opened, page):
    stops = {}
    for width in (1280, 390):
        p = opened(page, width, 844)
        p.evaluate("location.hash = 'claim-1'; document.querySelectorAll('details').forEach(d => d.open = true)")
        p.wait_for_function("!document.getElementById('claim-1').hidden")
        p.wait_for_function("[...document.querySelectorAll('#claim-1 :is(.scroll, .plate, pre)')].every(e => (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight) === (e.tabIndex === 0))") # at the next frame
        found = p.locator("#claim-1 :is(.scroll, .plate, pre)").evaluate_all("b => b.map(e => [e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight, e.tabIndex === 0])")
        assert all(a == b for a, b in found)
        stops[width] = sum(b for _, b in found)
    assert 1 <= stops[1280] < stops[390] < len(found)


def test_without_scripts_it_is_one_long_page(opened, page):
    p = opened(page, java_script_enabled=False)
    assert p.locator("#claim-5").is_visible() and p.locator("#provenance").is_visible() and p.locator(".tools:visible").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(opened, page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed: no accessibility check").Axe()
    p = opened(page, color_scheme=scheme)
    assert p.evaluate("getComputedStyle(document.documentElement).backgroundColor") == ("rgb(252, 252, 250)" if scheme == "light" else "rgb(21, 24, 28)")
    # colours alone differ in the dark
    only = dict(type="tag", values=["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]) if scheme == "light" else dict(type="rule", values=["color-contrast", "link-in-text-block"])
    check = lambda: axe.run(p, options=dict(runOnly=only, resultTypes=["violations"])).response["violations"]
    for name in ("overview", "claim-1", "claim-2", "notebook-validity", "provenance"):
        p.evaluate("name => { location.hash = name; }", name)
        p.wait_for_function("name => !document.getElementById(name).hidden", arg=name)
        p.evaluate("""document.querySelectorAll('.page:not([hidden]) details').forEach(d => d.open = true);
            document.querySelectorAll('.page:not([hidden]) tbody').forEach(b => { while (b.rows.length > 12) b.rows[12].remove(); })""") # rows alike, for speed
        found = check()
        assert not found, [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in found]
    # the check would see it
    p.evaluate("document.querySelectorAll('.soft, .facts, #provenance p').forEach(e => { e.style.color = 'rgb(128, 128, 128)'; e.style.background = 'rgb(120, 120, 120)'; })")
    assert [v["id"] for v in check()] == ["color-contrast"]
