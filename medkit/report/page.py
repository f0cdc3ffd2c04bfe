"""Self-contained HTML pages for readers without Jupyter. report.html is notebook 05."""

import re
from pathlib import Path

import nbformat
from nbconvert.exporters import HTMLExporter

from medkit import MedkitError
from medkit.runs import storage

NOTEBOOK = "notebooks/05_report.ipynb"  # the executed notebook in the run's folder
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem }
table { border: 0; border-collapse: collapse; font-size: 0.8rem; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top }
img { max-width: 100% } pre { font-size: 0.85rem; white-space: pre-wrap } code { font-size: 0.9em }
summary { cursor: pointer; color: #0072B2 } .anchor-link { display: none }
"""


def write_page(run_dir: str | Path) -> Path:
    """Convert a run's executed notebook 05 to report.html, without code.

    Raises ResultsError if the notebook has not been executed, MedkitError if the page would load another
    file.
    """
    executed = nbformat.read(storage.file(run_dir, NOTEBOOK), as_version=4)
    for cell in executed.cells:  # drop printed text: file names and library warnings
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    # "basic" is only the body: the other templates load scripts and fonts from other hosts.
    exporter = HTMLExporter(template_name="basic", embed_images=True)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(executed)
    body = body.replace("No description has been provided for this image", "Figure")
    # Keep a number and its interval on one line.
    body = re.sub(r"(?<=[\d†]) \[([-+.\d]+), ([-+.\d]+)\]", r"&nbsp;[\1,&nbsp;\2]", body)
    folder = Path(run_dir)
    page = html(f"medkit report: {folder.name}", body)
    if loaded := re.search(r"<(?:script|link|iframe|object)\b|\bsrc\s*=\s*(?![\"']?data:)\S+", page):
        raise MedkitError(f"report.html would load {loaded[0][:80]!r}; leave it out of notebook 05")
    return storage.write_text(folder / "report.html", page)


def html(title: str, body: str) -> str:
    """Wrap a body in a complete HTML page."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
