"""The page of runs in a real browser, Debian's chromium without a display."""

from __future__ import annotations

import shutil

import pytest

from scripts.report import main

pytestmark = pytest.mark.slow

WAIT = 60  # seconds for the charts, on a busy machine


@pytest.fixture(scope="module")
def browser():
    """Chromium, which has to reach no network."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, place in programs.items() if place is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: Debian's chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    # Tests may run as root and in containers, where the sandbox and /dev/shm are not to be had.
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1450,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, runs, tmp_path_factory):
    """The browser with the page of the runs."""
    from selenium.webdriver.support.ui import WebDriverWait

    out = tmp_path_factory.mktemp("page") / "report.html"
    names = [str(runs / name) for name in ("quick", "search", "paths", "runtimes.json")]
    assert main([*names, "--out", str(out)]) == 0
    browser.get(out.as_uri())
    WebDriverWait(browser, WAIT).until(
        lambda driver: driver.execute_script("return document.body.dataset.ready")
    )
    return browser


def points(driver):
    """Marks of chosen networks in the first chart, as the reader of a screen finds them."""
    from selenium.webdriver.common.by import By

    marks = driver.find_elements(By.CSS_SELECTOR, '[data-chart="networks-0"] path[aria-label]')
    return [mark for mark in marks if "network: served" in mark.get_attribute("aria-label")]


def text_of(driver, selector: str) -> str:
    return driver.execute_script(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def test_it_loads_without_messages_and_without_a_network(opened):
    assert opened.get_log("browser") == []
    requests = [entry["message"] for entry in opened.get_log("performance")]
    assert not any('"url":"http' in message for message in requests)
    drawn = "return [...document.querySelectorAll('figure')].every(f => f.querySelector('svg'))"
    assert opened.execute_script(drawn)


def test_a_network_answers_to_hover_and_click(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    mark = next(m for m in points(opened) if "served_3.0" in m.get_attribute("aria-label"))
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(opened).move_to_element(mark).perform()
    tooltip = text_of(opened, "#vg-tooltip-element")
    shown = ("served_3.0", "ms, predicted", "ms, measured", "top-1 (%)", "M parameters")
    for text in (*shown, "python export.py --ckpt_file"):
        assert text in tooltip
    ActionChains(opened).click(mark).perform()
    assert text_of(opened, "#network-name") == "served_3.0 (quick/served)"
    assert "K5E6 K5E6 K5E6" in text_of(opened, "#network-layers")
    assert text_of(opened, '[data-chart="layers-ms"]').count("K5E6") == 8


def test_the_keyboard_chooses_a_network_and_a_step(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    button = next(
        button
        for button in opened.find_elements(By.CSS_SELECTOR, "button[data-network]")
        if button.text == "served_1.5"
    )
    button.send_keys(Keys.ENTER)
    assert text_of(opened, "#network-name") == "served_1.5 (quick/served)"
    assert button.get_attribute("aria-pressed") == "true"
    slider = opened.find_element(By.CSS_SELECTOR, '[data-chart="history-0"] input[type="range"]')
    assert "step 30: " in text_of(opened, '[data-chart="history-0"] svg')
    slider.send_keys(*[Keys.ARROW_LEFT] * 2)
    assert "step 28: " in text_of(opened, '[data-chart="history-0"] svg')


def test_layers_are_in_their_order_and_of_one_unit(opened):
    from selenium.webdriver.common.by import By

    figures = {
        unit: opened.find_element(By.CSS_SELECTOR, f'[data-chart="layers-{unit}"]')
        for unit in ("ms", "million multiply-adds")
    }
    for name, shown in (("best_path", "million multiply-adds"), ("served_1.5", "ms")):
        buttons = opened.find_elements(By.CSS_SELECTOR, "button[data-network]")
        next(button for button in buttons if button.text == name).click()
        assert {unit for unit, figure in figures.items() if figure.is_displayed()} == {shown}
        labels = figures[shown].find_elements(By.CSS_SELECTOR, ".role-axis-label text")
        numbers = [int(label.text) for label in labels if label.text.isdigit()]
        layers = numbers[: numbers.index(0, 1)] if 0 in numbers[1:] else numbers
        assert layers == list(range(len(layers))) and len(layers) >= 8


def test_curves_change_with_scale_and_smoothing(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    figure = opened.find_element(By.CSS_SELECTOR, '[data-chart="curves"]')

    def lines() -> list[str]:
        marks = figure.find_elements(By.CSS_SELECTOR, ".mark-line path")
        return [mark.get_attribute("d") for mark in marks]

    before = lines()
    figure.find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
    logarithmic = lines()
    slide = "arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input'))"
    opened.execute_script(slide, figure.find_element(By.CSS_SELECTOR, "input[type=range]"))
    assert before != logarithmic
    WebDriverWait(opened, WAIT).until(lambda _: lines() != logarithmic)


def test_colours_follow_the_reader(opened):
    seen = []
    for scheme in ("light", "dark"):
        value = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", value)
        seen.append(
            opened.execute_script(
                "const text = document.querySelector('[data-chart=curves] text');"
                "return [getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(text).fill]"
            )
        )
    assert seen[0][0] == "rgb(255, 255, 255)" and seen[1][0] == "rgb(22, 25, 29)"
    assert seen[0][1] != seen[1][1]
