"""Pages for readers without Jupyter, each in one file that loads nothing: report.html is notebook 05."""

import re
from pathlib import Path

import nbformat
from nbconvert.exporters import HTMLExporter

from medkit import MedkitError
from medkit.runs import storage

NOTEBOOK = "notebooks/05_report.ipynb"  # of a run's folder: the executed one
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem }
table { border: 0; border-collapse: collapse; font-size: 0.8rem; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top }
img { max-width: 100% } pre { font-size: 0.85rem; white-space: pre-wrap } code { font-size: 0.9em }
summary { cursor: pointer; color: #0072B2 } .anchor-link { display: none }
"""


class PageError(MedkitError):
    """A page that would load something from elsewhere."""


def write_page(run_dir: str | Path) -> Path:
    """Write report.html into a run's folder, from its executed notebook 05: texts, tables, figures.

    Raises ResultsError where the notebook has not been executed, PageError where the page would load
    something from elsewhere.
    """
    executed = nbformat.read(storage.file(run_dir, NOTEBOOK), as_version=4)
    for cell in executed.cells:  # without what cells printed: names of files, warnings of libraries
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    # "basic" is the body alone: the other templates load scripts and fonts from other hosts.
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(executed)
    body = body.replace("No description has been provided for this image", "Figure")
    # A number and its interval stay on one line.
    body = re.sub(r"(?<=[\d†]) \[([-+.\d]+), ([-+.\d]+)\]", r"&nbsp;[\1,&nbsp;\2]", body)
    place = Path(run_dir)
    page = html(f"medkit report: {place.name}", body)
    if loaded := re.search(r"<(?:script|link|iframe|object)\b|\bsrc\s*=\s*(?![\"']?data:)\S+", page):
        raise PageError(f"report.html would load {loaded[0][:80]!r}; leave it out of notebook 05")
    return storage.write_text(place / "report.html", page)


def html(title: str, body: str) -> str:
    """A whole page around the HTML of its body."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
