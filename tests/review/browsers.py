"""Three engines behind one interface, selenium's: Chromium, Firefox, and WebKit, which is Safari's.

Debian has no geckodriver, so Firefox is driven by what geckodriver translates to, its own Marionette protocol: messages
"length:[0, id, command, parameters]", answered by "length:[1, id, error, result]".
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.remote.command import Command

SIZE = 1400, 900
MINI_BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"), None)


class Chromium:
    """By chromedriver; its logs tell of every request."""

    packages = "chromium and chromium-driver"
    tools = ("chromium", "chromedriver")

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        flags = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-sync"
        for flag in (*flags.split(), "disable-component-update", f"user-data-dir={folder}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))

    def requests(self) -> list[str]:
        """What a page has asked for since the last call, but for parts of itself and of Chromium's own pages."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "chrome:"))]

    def console(self) -> list[str]:
        """What a page has said since the last call, errors and complaints of the browser included."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def quit(self) -> None:
        self.driver.quit()


_REQUESTS = """window.asked = [];  // of channels to a server, which a file is not
    Services.obs.addObserver({observe: (subject) => {
        const channel = subject.QueryInterface(Ci.nsIHttpChannel);
        if (!channel.loadInfo.triggeringPrincipal.isSystemPrincipal) window.asked.push(channel.URI.spec);
    }}, "http-on-opening-request")"""
_CONSOLE = """const said = Services.console.getMessageArray().map((m) => m.message);
    Services.console.reset();
    return said.filter((text) => /^.JavaScript (Error|Warning)/.test(text) && text.includes("file:///"))"""


class Firefox:
    """By Marionette, which also runs scripts in the browser itself: these tell of requests and errors."""

    packages = "firefox-esr"
    tools = ("firefox-esr",)

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        preferences = {
            "marionette.port": port,
            "app.update.enabled": False,
            "network.captive-portal-service.enabled": False,
        }
        (folder / "user.js").write_text(
            "".join(f"user_pref({json.dumps(key)}, {json.dumps(value)});\n" for key, value in preferences.items())
        )
        command = ["firefox-esr", "--headless", "--marionette", "--remote-allow-system-access", "--no-remote"]
        self.process = subprocess.Popen(
            [*command, "--profile", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self.driver: Any = webdriver.Remote(Marionette(port), options=webdriver.FirefoxOptions())
        except BaseException:
            self.process.kill()
            raise
        self._in_browser(_REQUESTS)

    def _in_browser(self, script: str) -> Any:
        execute = self.driver.command_executor.command
        execute("Marionette:SetContext", {"value": "chrome"})
        try:
            return self.driver.execute_script(script)
        finally:
            execute("Marionette:SetContext", {"value": "content"})

    def requests(self) -> list[str]:
        """What a page has asked a server for since the last call, after the address of the page itself."""
        return [self.driver.current_url, *self._in_browser("return window.asked.splice(0)")]

    def console(self) -> list[str]:
        """What the browser has had to complain of since the last call."""
        found: list[str] = self._in_browser(_CONSOLE)
        return found

    def quit(self) -> None:
        try:
            self.driver.command_executor.command("Marionette:Quit", {"flags": ["eForceQuit"]})
            self.process.wait(20)
        finally:
            self.process.kill()
            self.driver.command_executor.close()


_MARIONETTE = {
    Command.NEW_SESSION: "NewSession",
    Command.GET: "Navigate",
    Command.REFRESH: "Refresh",
    Command.GET_CURRENT_URL: "GetCurrentURL",
    Command.FIND_ELEMENT: "FindElement",
    Command.FIND_ELEMENTS: "FindElements",
    Command.FIND_CHILD_ELEMENTS: "FindElements",
    Command.CLICK_ELEMENT: "ElementClick",
    Command.GET_ELEMENT_TEXT: "GetElementText",
    Command.GET_ELEMENT_TAG_NAME: "GetElementTagName",
    Command.IS_ELEMENT_ENABLED: "IsElementEnabled",
    Command.IS_ELEMENT_SELECTED: "IsElementSelected",
    Command.GET_ELEMENT_PROPERTY: "GetElementProperty",
    Command.GET_ELEMENT_ATTRIBUTE: "GetElementAttribute",
    Command.SEND_KEYS_TO_ELEMENT: "ElementSendKeys",
    Command.W3C_EXECUTE_SCRIPT: "ExecuteScript",
    Command.W3C_EXECUTE_SCRIPT_ASYNC: "ExecuteAsyncScript",
    Command.W3C_ACTIONS: "PerformActions",
    Command.SET_WINDOW_RECT: "SetWindowRect",
    Command.SCREENSHOT: "TakeScreenshot",
    Command.PRINT_PAGE: "Print",
}


class Marionette:
    """What selenium takes for a connection to a driver."""

    client_config = None

    def __init__(self, port: int) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), 60)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.stream = self.socket.makefile("rb")
        self._receive()  # its greeting

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def _receive(self) -> Any:
        digits = b""
        while (byte := self.stream.read(1)) != b":":
            if not byte:
                raise ValueError("Firefox has gone")
            digits += byte
        return json.loads(self.stream.read(int(digits)))

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        message = json.dumps([0, 1, name, parameters]).encode()
        self.socket.sendall(b"%d:%s" % (len(message), message))
        *_, error, result = self._receive()
        if error:
            raise WebDriverException(f"{name}: {error['error']}: {error['message']}")
        return result

    def execute(self, command: str, parameters: dict[str, Any]) -> dict[str, Any]:
        if command == Command.NEW_SESSION:
            parameters = {}
        if command == Command.FIND_CHILD_ELEMENTS:
            parameters = {**parameters, "element": parameters["id"]}
        result = self.command(f"WebDriver:{_MARIONETTE[command]}", parameters)
        if command == Command.NEW_SESSION:
            return {"value": result}
        return {"value": result["value"] if isinstance(result, dict) and "value" in result else result}


_COMPLAINTS = """if (!window.complaints) {
        window.complaints = [];
        addEventListener("error", (event) => complaints.push(event.message));
        addEventListener("unhandledrejection", (event) => complaints.push(String(event.reason)));
        addEventListener("securitypolicyviolation", (event) => complaints.push(event.violatedDirective));
    }
    return complaints.splice(0)"""


class Proxy(BaseHTTPRequestHandler):
    """Writes down what is asked for, and has nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    do_POST = do_HEAD = do_CONNECT = do_GET

    def log_message(self, *_: object) -> None: ...


class WebKit:
    """By WebKitWebDriver, in a window on a screen of its own, behind a proxy that hears of requests.

    It tells its console to nobody, so a script listens.
    """

    packages = "webkit2gtk-driver and xvfb"
    tools = ("WebKitWebDriver", "Xvfb", str(MINI_BROWSER or "MiniBrowser"))

    def __init__(self, folder: Path) -> None:
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
        self.screen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.screen.stdout is not None
        display = self.screen.stdout.readline().decode().strip()
        options = webdriver.WebKitGTKOptions()
        options.binary_location = str(MINI_BROWSER)
        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        self.proxy.asked = []  # type: ignore[attr-defined]
        Thread(target=self.proxy.serve_forever, daemon=True).start()
        for flag in ("--automation", f"--proxy=http://127.0.0.1:{self.proxy.server_address[1]}"):
            options.add_argument(flag)
        environment = {**os.environ, "DISPLAY": f":{display}", "HOME": str(folder), "LIBGL_ALWAYS_SOFTWARE": "1"}
        service = webdriver.WebKitGTKService(shutil.which("WebKitWebDriver"), env=environment)
        try:
            self.driver: Any = webdriver.WebKitGTK(options, service)
        except BaseException:
            self.screen.kill()
            raise

    def requests(self) -> list[str]:
        """What was asked for since the last call, after the address of the page itself."""
        asked: list[str] = self.proxy.asked  # type: ignore[attr-defined]
        found = [asked.pop(0) for _ in range(len(asked))]
        return [self.driver.current_url, *found]

    def console(self) -> list[str]:
        """What went wrong since the last call, or since the first one in a page."""
        found: list[str] = self.driver.execute_script(_COMPLAINTS)
        return found

    def quit(self) -> None:
        self.driver.quit()
        self.proxy.shutdown()
        self.proxy.server_close()
        self.screen.terminate()
        self.screen.wait(20)
        self.screen.stdout.close()  # type: ignore[union-attr]


BROWSERS = {"chromium": Chromium, "firefox": Firefox, "webkit": WebKit}


def missing(browser: Any) -> list[str]:
    """The programs that are not installed."""
    return [tool for tool in browser.tools if shutil.which(tool) is None]
