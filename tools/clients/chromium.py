"""Classify texts with transformers.js in headless Chromium from a bundle, and compare the labels with distill's.

    npm install @huggingface/transformers
    distill predict BUNDLE --file texts.txt --json > answers.json
    python tools/clients/chromium.py BUNDLE texts.txt answers.json --modules node_modules [--dtype q8]

It needs chromium and chromedriver. A web server on this machine gives the page the library, its WebAssembly and the
bundle, and nothing is fetched from elsewhere. Exit status 1: a label differs.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selenium import webdriver

PAGE = """<!doctype html><meta charset="utf-8"><title>clients</title>
<script type="module">
import { env, pipeline } from "/library/transformers.min.js";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/models/";
env.backends.onnx.wasm.wasmPaths = "/wasm/";
env.backends.onnx.wasm.numThreads = 1;
const loaded = {};
window.ask = async (texts, dtype) => {
  loaded[dtype] ??= await pipeline("text-classification", "bundle", { dtype, device: "wasm" });
  const classify = loaded[dtype];
  const start = performance.now(), found = [];
  for (const text of texts) found.push((await classify(text))[0]);
  return { found, each: (performance.now() - start) / texts.length };
};
document.title = "ready";
</script>
"""
ASK = """
const [texts, dtype, done] = arguments;
const ready = () => window.ask
  ? window.ask(texts, dtype).then(done, (error) => done({error: String(error)}))
  : setTimeout(ready, 100);
ready();
"""
AT_ONCE, SECONDS = 25, 100  # texts of a call, and how long it may take; selenium itself waits for two minutes


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}  # noqa: RUF012

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Print how many labels are distill's; exit with 1 if one is not."""
    parser = argparse.ArgumentParser(description="Try a bundle with transformers.js in headless Chromium.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path, help="one text a line")
    parser.add_argument("answers", type=Path, help="what distill predict --json printed for them")
    parser.add_argument("--modules", type=Path, required=True, help="node_modules with @huggingface/transformers")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "fp16", "q8"])
    arguments = parser.parse_args()
    texts = [line for line in arguments.texts.read_text().splitlines() if line.strip()]
    expected = json.loads(arguments.answers.read_text())
    with tempfile.TemporaryDirectory() as root:
        site = Path(root)
        (site / "index.html").write_text(PAGE)
        (site / "models").mkdir()
        (site / "models" / "bundle").symlink_to(arguments.bundle.absolute())
        (site / "library").symlink_to((arguments.modules / "@huggingface" / "transformers" / "dist").absolute())
        (site / "wasm").symlink_to((arguments.modules / "onnxruntime-web" / "dist").absolute())
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = webdriver.ChromeOptions()
        for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(SECONDS)
            driver.get(f"http://127.0.0.1:{server.server_port}/")
            differ = 0
            for dtype in arguments.dtype:
                same, seconds = 0, 0.0
                for start in range(0, len(texts), AT_ONCE):
                    answer = driver.execute_async_script(ASK, texts[start : start + AT_ONCE], dtype)
                    if "error" in answer:
                        sys.exit(f"{dtype}: {answer['error']}\n{driver.get_log('browser')}")
                    wanted = expected[start : start + AT_ONCE]
                    labels = [one["label"] for one in answer["found"]]
                    same += sum(found == one["label"] for found, one in zip(labels, wanted, strict=True))
                    seconds += answer["each"] * len(labels) / 1e3
                print(
                    f"{dtype}: {same} of {len(texts)} labels as distill's, {1e3 * seconds / len(texts):.1f} ms a text"
                )
                differ += len(texts) - same
        finally:
            driver.quit()
            server.shutdown()
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
