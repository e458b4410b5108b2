"""What the pages point at is there: files, headings, targets of make, playbooks, variables."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from support import ROOT

PAGES = [ROOT / "README.md", ROOT / "molecule/README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
QUESTIONS = set(re.findall(r"(?m)^QUESTIONS := (.*)$", (ROOT / "Makefile").read_text())[0].split())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def anchors(path: Path) -> set[str]:
    """Those of a page's headings, as GitHub and Markdown's toc make them."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", line)).strip() for line in headings]
    return {re.sub(r"\s", "-", line.lower()) for line in plain}


def commands(path: Path) -> list[str]:
    """Lines of the page's blocks without a language, those that go on joined, and code within the text."""
    blocks = [text.replace("\\\n", " ") for language, text in FENCE.findall(path.read_text()) if language == ""]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text()))
    return [line.strip() for block in blocks for line in block.splitlines()] + inline


@cache
def variables() -> set[str]:
    known: set[str] = set()
    for path in ROOT.glob("playbooks/*.yml"):  # what a playbook alone knows
        known |= set(re.findall(r"\b([a-z_]+) (?:\| default\(|is not defined)", path.read_text()))
    for specs in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            known |= set(entry.get("options") or {})
    for path in [*ROOT.glob("group_vars/all/*.yml"), *ROOT.glob("roles/*/defaults/main.yml")]:
        known |= set(yaml.safe_load(path.read_text()) or {})
    return known


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        there = (path.parent / place).resolve() if place else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), (target, sorted(anchors(there)))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_name_what_there_is(path: Path) -> None:
    for line in commands(path):
        for target in re.findall(r"(?:^|[;&|]\s*|\bsudo )make ([a-z-]+)", line):
            assert target in TARGETS | QUESTIONS, line
        for playbook in re.findall(r"(?<![\w./-])((?:playbooks/)[\w]+\.yml)", line):
            assert (ROOT / playbook).exists(), line
        for given in re.findall(r"-e ([a-z_]+)=", line):
            assert given in variables(), line


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "zensical.toml").read_text()
    named = set(re.findall(r"([\w-]+\.md)", text[text.index("nav = ") :]))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}
    index = (ROOT / "docs/index.md").read_text()
    assert named - {"index.md"} <= set(re.findall(r"\(([\w-]+\.md)\)", index))
