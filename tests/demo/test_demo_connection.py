"""The demo's page when it is loaded again, visited by several viewers, cut off, or served by a new server."""

import re
import time

import pytest
from browser import check_accessible
from demo_pages import MOST, READY, Cable, port_of, trained, training
from playwright.sync_api import expect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

HIDE = """hidden => {
  Object.defineProperty(document, 'visibilityState', {value: hidden ? 'hidden' : 'visible', configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def complete(page, rounds=1):
    """Check that a page shows all of a running or finished federation."""
    expect(page.locator("#clients > li")).to_have_count(6)
    expect(page.locator("#clients .meter b")).to_have_count(6)
    expect(page.locator("#samples label")).to_have_count(16)
    expect(page.locator("#heterogeneity-value")).to_have_text("complete")
    expect(page.locator("#apart svg")).to_have_attribute("aria-label", re.compile("Cosines after round"))
    assert page.locator("#rounds tbody tr").count() >= rounds


def test_a_reload_the_back_button_and_a_second_viewer_show_the_running_federation(visit):
    page = visit()
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    page.locator("#start").click()
    training(page, 1)
    second = visit()
    complete(second)
    page.reload()
    complete(page)
    expect(page.locator("#action")).to_have_text("You started the federation.")
    page.goto("about:blank")
    page.go_back()
    complete(page)
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")  # as before a page is kept for the back button
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    trained(page)
    trained(second)
    for one in (page, second):
        one.reload()
        trained(one)
        complete(one, 12)
        expect(one.locator("#connection")).to_be_hidden()


def test_viewers_who_act_at_the_same_time_see_one_state_and_what_the_others_did(visit):
    anna, ben = visit(), visit()
    for page in (anna, ben):
        expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    for page in (anna, ben):  # before the first one's start can reach the second page
        page.evaluate("setTimeout(() => document.getElementById('start').click(), 1500 - Date.now() % 1000)")
    training(anna, 1)
    messages = [page.locator("#action").inner_text() for page in (anna, ben)]
    assert sorted(messages) == ["Another viewer started the federation.", "You started the federation."]
    ben.locator("#mu").fill("5")
    expect(anna.locator("#action")).to_have_text("Another viewer moved μ to 5, so the federation starts again.")
    expect(anna.locator("#mu-value")).to_have_text("5.0")
    expect(ben.locator("#action")).to_contain_text("You moved μ to 5")
    training(anna, 1)
    anna.locator("#stop").click()
    expect(ben.locator("#status")).to_contain_text("Stopped after round", timeout=20_000)
    expect(ben.locator("#action")).to_have_text("Another viewer stopped the federation.")
    expect(ben.locator("#apart")).to_contain_text("The dashed lines belong to the federation with μ 1.0")
    anna.locator("[value=photographs]").check()
    expect(ben.locator("#action")).to_have_text("Another viewer chose photographs.")
    for page in (anna, ben):
        expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
        expect(page.locator("[value=photographs]")).to_be_checked()
        expect(page.locator("#rounds tbody tr")).to_have_count(0)


def test_a_refusal_stays_on_the_page_although_news_arrive(visit):
    page = visit()
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    page.locator("#start").click()
    training(page, 1)
    page.evaluate("document.getElementById('start').setAttribute('aria-disabled', 'false')")  # as before the first view
    page.locator("#start").click()
    expect(page.locator("#refused")).to_contain_text("a federation is already running")
    training(page, 3)
    expect(page.locator("#refused")).to_contain_text("a federation is already running")


def test_a_cut_network_is_reported_and_the_page_recovers_by_itself(visit, address, faults, shoot):
    cable = Cable(port_of(address))
    page = visit(f"http://127.0.0.1:{cable.server_address[1]}/")
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    page.locator("#start").click()
    training(page, 1)
    cable.whole.clear()
    expect(page.locator("#connection")).to_contain_text("No connection to the server since", timeout=20_000)
    expect(page.locator("#status")).to_have_text("No connection")
    check_accessible(page)
    shoot(page, "demo-cut")
    time.sleep(8)
    cable.whole.set()
    trained(page)
    expect(page.locator("#connection")).to_be_hidden()
    complete(page, 12)
    cable.shutdown()


def test_a_server_that_was_started_again_is_reported_and_the_page_follows_it(visit, demo, faults):
    page = visit()
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    page.locator("#start").click()
    training(page, 1)
    page.locator("#mu").fill("3")
    demo.stop()
    expect(page.locator("#connection")).to_contain_text("start it again on the same port")
    assert demo.start(port_of(demo.address)) == demo.address
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    expect(page.locator("#connection")).to_be_hidden()
    expect(page.locator("#action")).to_contain_text("The server was started again. The earlier federation is gone")
    expect(page.locator("#rounds tbody tr")).to_have_count(0)
    expect(page.locator("#clients > li")).to_have_count(6)
    expect(page.locator("#clients .meter b")).to_have_count(0)
    page.locator("#start").click()
    training(page, 1)
    complete(page)
    faults[:] = [fault for fault in faults if "ERR_CONNECTION_REFUSED" not in fault]


def test_more_tabs_than_a_browser_has_connections(visit, browser):
    context = browser.new_context()
    tabs = []
    for _ in range(8):  # six connections to a server at most
        for tab in tabs:
            tab.evaluate(HIDE, True)
        tabs.append(visit(context=context))
        expect(tabs[-1].locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    tabs[-1].evaluate(HIDE, True)
    tabs[0].evaluate(HIDE, False)
    tabs[0].locator("#start").click()
    training(tabs[0], 1)
    tabs[0].evaluate(HIDE, True)
    tabs[3].evaluate(HIDE, False)
    complete(tabs[3])
    context.close()
