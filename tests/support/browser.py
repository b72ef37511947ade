"""Headless Chromium, driven through the pipe of its DevTools protocol, without further libraries."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import count

NAMES = (
    *("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--lang=en")
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
TIMEOUT = 20.0  # seconds


class Browser:
    """A page in Chromium.

    Attributes:
        events: Events of the page so far: requests, console messages and exceptions.
    """

    def __init__(self, answers, commands):
        self._answers, self._commands = answers, commands
        self._numbers, self._session = count(1), {}
        self._rest = b""
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command; return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _read(self):
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], TIMEOUT)[0], f"Chromium is silent for {TIMEOUT} seconds"
            self._rest += (data := self._answers.read(1 << 16))
            assert data, "Chromium ended"
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + TIMEOUT
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} is not true after {TIMEOUT} seconds"
            time.sleep(0.02)
        return value

    def open(self, url, width=1280, height=720, dark=False):
        """Open an address."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState == 'complete' && location.href.startsWith({json.dumps(url)})")

    def type(self, text):
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, *keys):
        """Press keys, one after the other."""
        for key in keys:
            shared = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
            self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def point(self, expression, click=False):
        """Move the pointer over the element of an expression, scrolled into view, and click it."""
        self.evaluate(f"{expression}.scrollIntoView({{block: 'nearest'}})")
        rectangle = f"{expression}.getBoundingClientRect()"
        x, y, width, height = self.evaluate(f"(({{x, y, width, height}}) => [x, y, width, height])({rectangle})")
        position = {"x": x + width / 2, "y": y + height / 2}
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **position, **button)

    def screenshot(self):
        """Return the visible part of the page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def urls(self):
        """Return the addresses that the page asked for."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]

    def problems(self):
        """Return exceptions, and what the browser logged, such as violations of the policy."""
        methods = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        events = [event["params"] for event in self.events if event.get("method") in methods]
        return [event for event in events if event.get("entry", {}).get("level") != "verbose"]


@contextmanager
def open_browser(folder):
    """Start Chromium with its profile in a folder; yield a page."""
    (read_end, chromium_write), (chromium_read, write_end) = os.pipe(), os.pipe()
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-pipe"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.Popen(  # Chromium reads commands from descriptor 3 and writes to 4
        ["bash", "-c", f'exec "$@" 3<&{chromium_read} 4>&{chromium_write}', "bash", *command],
        pass_fds=(chromium_read, chromium_write),
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(chromium_read)
    os.close(chromium_write)
    try:
        with open(read_end, "rb", buffering=0) as answers, open(write_end, "wb", buffering=0) as commands:
            yield Browser(answers, commands)
    finally:
        process.terminate()
        process.wait()
