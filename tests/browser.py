"""A real browser: Debian's chromium, without a window."""

import html
import re
import shutil
import subprocess
import tempfile

import pytest


def open_page(link):
    """Return the page that a browser shows, once its scripts have run, as HTML."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        shown = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                f"--user-data-dir={profile}",
                "--virtual-time-budget=2500",
                "--dump-dom",
                link,
            ],
            capture_output=True,
            text=True,
            timeout=100,
        )
    return shown.stdout


def counts_on(page):
    """Return the counts by state that the Operation page shows."""
    found = re.findall(r'<li data-state="(\w+)"><i [^>]*></i>([\d,]+) \w+</li>', page)
    return {state: int(number.replace(",", "")) for state, number in found}


def text_of(page):
    """Return what a page shows, without its script."""
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))
