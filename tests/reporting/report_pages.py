"""Reading a report back: its tags and its text."""

import re
from html import unescape
from html.parser import HTMLParser

from sequencematch.reporting import write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Tags(HTMLParser):
    """Every start tag with its attributes; fails where tags do not nest."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    parser = Tags()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.tags


def text_of(page):
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def written(*folders):
    path = folders[0].parent / "new" / "report.html"
    write_report(folders, path)
    return path.read_text(encoding="utf-8")


def points(line):
    """A line's points, as fractions of the chart from its lower left corner."""
    found = [tuple(float(number) / 1000 for number in point.split(",")) for point in line.points.split()]
    return [(x, 1 - y) for x, y in found]


def between(axis, value):
    """Where a value stands on a linear axis."""
    return (value - axis.low) / (axis.high - axis.low)
