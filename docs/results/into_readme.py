"""Put the pages beside this file between the markers of README.md: `python docs/results/into_readme.py`."""

from pathlib import Path

PAGES = ("demo.md", "demo_final_instances.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def body(page: Path) -> str:
    """A page with its title one level down."""
    return "##" + page.read_text(encoding="utf-8").strip()


def filled(readme: str, pages: list[str]) -> str:
    """The README with `pages` between its markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n\n" + "\n\n".join(pages) + "\n\n" + END + after


if __name__ == "__main__":
    here = Path(__file__).parent
    readme = here.parents[1] / "README.md"
    pages = [body(here / name) for name in PAGES if (here / name).exists()]
    readme.write_text(filled(readme.read_text(encoding="utf-8"), pages), encoding="utf-8")
