"""A ComfyUI with the pack, and its page in a headless Chromium; for `pytest -m browser`."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PACK = "comfyui-magicapture"
FLAGS = (
    *("--headless=new", "--window-size=1700,1100", "--hide-scrollbars"),
    "--no-sandbox",  # containers and root have none; the page is our own
    *("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic"),
)
READY = """return !!(window.app?.graph && app.canvas && app.extensionManager && window.LiteGraph
  && LiteGraph.registered_node_types.MagiCaptureTrain)"""
# A chooser of files is the system's window, which nobody sees here: keep what would open it.
KEEP_CHOOSER = """const click = HTMLInputElement.prototype.click;
HTMLInputElement.prototype.click = function () {
  if (this.type !== "file") return click.call(this);
  window.chooser = this;
  document.body.append(this);
};"""
# What the server tells the page, as the page's own code hears it.
HEAR = """window.heard = [];
const events = ["progress", "b_preview", "executed", "execution_error",
  "execution_interrupted", "execution_success"];
for (const type of events) app.api.addEventListener(type, ({ detail }) => heard.push(
  [type, detail instanceof Blob ? { bytes: detail.size } : detail]));"""
MISSING_MODELS = "Comfy.Workflow.ShowMissingModelsWarning"
KEYS = {"escape": "\ue00c", "enter": "\ue007", "control": "\ue009", "alt": "\ue00a"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--draw-pictures", action="store_true", help="write the pictures of the help pages anew"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out unless `-m` names them: they take minutes."""
    own = [item for item in items if HERE in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.browser)
    if own and "browser" not in config.option.markexpr:
        items[:] = [item for item in items if item not in own]
        config.hook.pytest_deselected(items=own)


def _program(kind: str, *names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no {kind}: install Debian's packages chromium and chromium-driver")


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """A Chromium without a window, driven through selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install magicapture[browser]")
    options = webdriver.ChromeOptions()
    options.binary_location = _program("Chromium", "chromium", "chromium-browser")
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(_program("driver of Chromium", "chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(120)
    driver.set_page_load_timeout(180)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def server(
    serving: Callable[..., AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A running ComfyUI that has no model but those of the pack."""
    if not find_spec("comfyui_frontend_package"):
        pytest.skip("no page: pip install -r requirements.txt of ComfyUI")
    # ComfyUI's page looks for help under the folder's name, up to its first "."
    with serving(tmp_path_factory.mktemp("server"), pack=PACK) as running:
        yield running


@dataclass
class Page:
    """ComfyUI's page."""

    driver: Any
    server: Any
    errors_at_start: list[str] = field(default_factory=list)

    def js(self, code: str, *args: Any) -> Any:
        """What JavaScript returns; it may await."""
        body = f"""const done = arguments[arguments.length - 1];
          (async (...args) => {{ {code} }})(...arguments).then(
            (value) => done({{ value }}), (error) => done({{ error: String(error.stack) }}))"""
        answer = self.driver.execute_async_script(body, *args)
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def wait(self, code: str, *args: Any, seconds: float = 60) -> Any:
        """Wait until JavaScript returns something true; that."""
        end = time.monotonic() + seconds
        while True:
            if value := self.js(code, *args):
                return value
            assert time.monotonic() < end, f"not within {seconds} s: {code}"
            time.sleep(0.3)

    def open(self) -> None:
        """Load the page anew."""
        self.console_errors()  # those of the page before
        self.driver.get(self.server.url)
        end = time.monotonic() + 180
        while not self.driver.execute_script(READY):
            assert time.monotonic() < end, "the page does not come up"
            time.sleep(0.5)
        self.js(KEEP_CHOOSER + HEAR)
        time.sleep(2)  # what the page shows on a first visit
        self.press("escape")
        self.errors_at_start = self.console_errors()

    def design(self, nodes2: bool) -> None:
        """Choose ComfyUI's node design: the classic one, or Nodes 2.0."""
        self.js("await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', args[0])", nodes2)

    def load(self, workflow: dict[str, Any]) -> None:
        self.js("await app.loadGraphData(args[0]); heard.length = 0", workflow)
        time.sleep(1)  # widgets of subgraphs follow

    def press(self, *keys: str) -> None:
        """Press a key together with others that are held: `press("control", "enter")`."""
        from selenium.webdriver import ActionChains

        *held, last = (KEYS[key] for key in keys)
        actions = ActionChains(self.driver)
        for key in held:
            actions.key_down(key)
        actions.send_keys(last)
        for key in held:
            actions.key_up(key)
        actions.perform()

    def click(self, x: float, y: float) -> None:
        """Click at a point of the graph."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        left, top = self.js(
            """const { left, top } = app.canvas.canvas.getBoundingClientRect();
            const { scale, offset } = app.canvas.ds;
            return [left + (args[0] + offset[0]) * scale, top + (args[1] + offset[1]) * scale]""",
            x,
            y,
        )
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(round(left), round(top)).pause(0.2).click()
        actions.perform()

    def look_at(self, x: float, y: float, scale: float = 1) -> None:
        """Put a point of the graph into the page's upper left part."""
        self.js(
            """Object.assign(app.canvas.ds, { scale: args[2] });
            app.canvas.ds.offset = [300 / args[2] - args[0], 200 / args[2] - args[1]];
            app.canvas.setDirty(true, true)""",
            x,
            y,
            scale,
        )
        time.sleep(0.5)

    def prompt(self) -> dict[str, Any]:
        """What the page would queue, in ComfyUI's API form."""
        return self.js("return (await app.graphToPrompt()).output")

    def workflow(self) -> dict[str, Any]:
        """What the page would save."""
        return self.js("return (await app.graphToPrompt()).workflow")

    def visible(self, selector: str) -> list[Any]:
        from selenium.webdriver.common.by import By

        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def wait_visible(self, selector: str, seconds: float = 60) -> list[Any]:
        end = time.monotonic() + seconds
        while not (found := self.visible(selector)):
            assert time.monotonic() < end, f"nothing like {selector} on the page"
            time.sleep(0.3)
        return found

    def console_errors(self) -> list[str]:
        """What went wrong on the page since the last call, but for what is no concern of ours.

        That is: what cannot be had without a network, and files of a user that are not there.
        """
        messages = [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]
        foreign = f"(?!.*/extensions/{PACK}/).*Failed to load resource"
        return [message for message in messages if not re.match(foreign, message)]


@pytest.fixture(scope="module")
def page(driver: Any, server: Any) -> Page:
    """The page, freshly loaded, in the classic design."""
    page = Page(driver, server)
    page.open()
    # 0.3.64 covers the page with a dialog where a template's checkpoint is not there.
    page.js("await app.extensionManager.setting.set(args[0], false)", MISSING_MODELS)
    page.design(nodes2=False)
    return page
