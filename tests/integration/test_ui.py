"""The Airflow UI as an operator sees it, in headless Chromium. Screenshots land in `.millrace/screenshots`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from infra.airflow_client import Airflow
from infra.settings import PROJECT, Settings

DAGS = ("provision", "decide_parked_letters", "stream_supervisor", "reconcile", "data_quality", "replay_dead_letters")
SHOTS = PROJECT / ".millrace" / "screenshots"


pytestmark = pytest.mark.usefixtures("every_service")


@pytest.fixture(scope="module")
def browser(stack: Settings) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "install Debian's packages chromium and chromium-driver"
    assert driver, "install Debian's package chromium-driver"
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1500,1100",
        "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    chrome = Chrome(options=options, service=ChromeService(driver))
    SHOTS.mkdir(parents=True, exist_ok=True)
    try:
        chrome.get(f"{stack.airflow_url}/auth/login")
        wait = WebDriverWait(chrome, 60)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "input[name=username]"))
        chrome.find_element(By.CSS_SELECTOR, "input[name=username]").send_keys("admin")
        chrome.find_element(By.CSS_SELECTOR, "input[name=password]").send_keys(stack.secret("airflow-admin"))
        chrome.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        wait.until(lambda b: "/auth/login" not in b.current_url)
        yield chrome
    finally:
        chrome.quit()


@pytest.mark.timeout(180)
def test_every_dag_is_listed(stack: Settings, browser: Chrome) -> None:
    Airflow(stack).wait_for_dags(DAGS)
    browser.get(f"{stack.airflow_url}/dags")
    WebDriverWait(browser, 60).until(lambda b: all(dag in b.find_element(By.TAG_NAME, "body").text for dag in DAGS))
    browser.save_screenshot(str(SHOTS / "dags.png"))


def test_every_dag_has_its_runbook(stack: Settings) -> None:
    airflow = Airflow(stack)
    airflow.wait_for_dags(DAGS)
    for dag in DAGS:
        assert "**When.**" in airflow.runbook(dag), dag
