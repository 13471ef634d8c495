"""A headless Chromium for tests of pages, spoken to over a pipe: no other package is needed."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def found():
    """Path of a browser, or None; PYROCRYO_BROWSER names another."""
    named = os.environ.get("PYROCRYO_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. ``said`` collects console errors and uncaught exceptions."""

    def __init__(self, width=1200, height=900, path=None):
        here, there = os.pipe(), os.pipe()
        self.profile = tempfile.mkdtemp()

        def pipes():  # the browser reads from 3 and writes to 4
            reads, writes = os.dup(here[0]), os.dup(there[1])
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        self.process = subprocess.Popen(
            [
                path or found(), "--headless=new", "--no-sandbox", "--disable-gpu",
                "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
                f"--window-size={width},{height}", f"--user-data-dir={self.profile}",
                "about:blank",
            ],
            close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(here[0])
        os.close(there[1])
        self.out, self.back = here[1], there[0]
        os.set_blocking(self.back, False)
        self.rest, self.number, self.said, self.session = b"", 0, [], None
        tab = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method, *, patience=60, **params):
        """A command of the DevTools protocol, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        for answer in self._messages(patience):
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
        raise TimeoutError(method)

    def _messages(self, patience):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            while b"\0" in self.rest:
                raw, _, self.rest = self.rest.partition(b"\0")
                message = json.loads(raw)
                self._heard(message)
                yield message
            try:
                more = os.read(self.back, 1 << 20)
                if not more:
                    raise RuntimeError("the browser has gone")
                self.rest += more
            except BlockingIOError:
                time.sleep(0.005)

    def _heard(self, message):
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"])[:500])
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.said.append(params["entry"]["text"])
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.said.append(str(params["args"])[:500])
        url = params.get("request", {}).get("url", "")
        if url.startswith("http"):
            self.said.append(f"asks the network for {url}")

    def size(self, width, height, *, ratio=1):
        """Of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=ratio, mobile=False,
        )  # fmt: skip

    def media(self, kind="", **features):
        """Prefers what, such as ``prefers_color_scheme="dark"``."""
        told = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.call("Emulation.setEmulatedMedia", media=kind, features=told)

    def open(self, path, *, script=True):
        """Opens a file and waits until it is loaded."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=f"file://{os.path.abspath(path)}")
        self.until("document.readyState === 'complete'")

    def js(self, text):
        """What an expression comes to."""
        told = self.call(
            "Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, text, *, patience=30):
        """Waits for an expression to be true."""
        end = time.monotonic() + patience
        while not self.js(text):
            if time.monotonic() > end:
                raise TimeoutError(text)
            time.sleep(0.02)

    def mouse(self, kind, x, y, button="none", **more):
        """A real event of the mouse: kind is mouseMoved, mousePressed or mouseReleased."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, **more)

    def shot(self, path, *, whole=False):
        """A picture of the page."""
        options = {"captureBeyondViewport": True} if whole else {}
        if whole:
            box = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {**box, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", **options)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def close(self):
        """Ends the browser."""
        self.session = None
        try:
            self.call("Browser.close", patience=10)
            self.process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)
