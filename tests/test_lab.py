"""JupyterLab as `make lab` starts it: a notebook is opened in a browser, run to its end, and its figure seen."""
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

LIMIT = 90 # seconds for everything
NOTEBOOK = "experiments/published.ipynb" # draws a figure, and takes seconds


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def chromium():
    "Playwright's interface and the browser's path."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser test")
    if not (path := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")): pytest.skip("no Chromium on this machine: no browser test")
    return sync_api, path


@pytest.fixture
def lab(root, tmp_path, chromium):
    "The address and token of a JupyterLab on a copy of nbs/, with no settings of the user's, and when all must be done; ended whatever happens."
    command = Path(sys.executable).parent / "jupyter"
    if not command.exists(): pytest.skip("JupyterLab is not installed (the extra 'dev')")
    assert re.search(r"^lab: .*\n\t\$\(BIN\)/jupyter lab nbs$", (root / "Makefile").read_text(), re.M), "make lab starts something else: bring this test up to date"
    (tmp_path / "nbs/experiments").mkdir(parents=True)
    for name in ("12_published.ipynb", NOTEBOOK): shutil.copy(root / "nbs" / name, tmp_path / "nbs" / name)
    # all cells stay in the page, in view or not
    (tmp_path / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/notebook-extension").mkdir(parents=True)
    (tmp_path / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/notebook-extension/tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    port, token = free_port(), secrets.token_hex(16)
    env = {**os.environ, "PYTHONPATH": str(root), **{name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}}
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", *(["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else [])]
    with open(tmp_path / "log", "wb") as log: server = subprocess.Popen([command, "lab", "nbs", *options], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + LIMIT
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close(); break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < end, f"JupyterLab did not start:\n{(tmp_path / 'log').read_text()[-2000:]}"
                time.sleep(0.2)
        yield address, token, end
    finally:
        # its kernels end with it
        server.send_signal(signal.SIGTERM)
        try: server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL); server.wait()


def test_a_notebook_runs_in_jupyterlab_and_shows_its_figure(lab, chromium, tmp_path):
    (address, token, end), (sync_api, path) = lab, chromium
    left = lambda: max(1.0, end - time.monotonic()) * 1000
    code = lambda: [c for c in json.loads((tmp_path / "nbs" / NOTEBOOK).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] for c in code())
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"])
        try:
            page, away = browser.new_page(viewport=dict(width=1400, height=1000)), []
            page.on("request", lambda r: None if re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", r.url) else away.append(r.url))
            page.goto(f"{address}/lab/tree/{NOTEBOOK}?token={token}", timeout=left(), wait_until="domcontentloaded")
            panel = page.locator(".jp-NotebookPanel:visible")
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=left()) # before, what is run is lost
            images = panel.locator(".jp-OutputArea-output img")
            page.wait_for_function("n => document.querySelectorAll('.jp-NotebookPanel .jp-CodeCell').length === n", arg=len(code()), timeout=left())
            assert images.count() == 0
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=left())
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click(timeout=left())
            images.first.scroll_into_view_if_needed(timeout=left())
            assert images.first.is_visible() and images.first.evaluate("i => i.decode().then(() => i.naturalWidth)") > 300
            page.wait_for_function("n => [...document.querySelectorAll('.jp-NotebookPanel .jp-CodeCell .jp-InputArea-prompt')].filter(e => /\\[\\d+\\]/.test(e.textContent)).length === n", arg=len(code()), timeout=left())
            page.keyboard.press("Control+s")
            while not all(c["execution_count"] for c in code()):
                assert left() > 1000, "the notebook was not saved"
                page.wait_for_timeout(200)
        finally: browser.close()
    outputs = [o for c in code() for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"] and any("image/png" in o.get("data", {}) for o in outputs)
    assert not away, away
