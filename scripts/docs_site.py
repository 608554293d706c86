"""Hooks of the documentation's site (mkdocs.yml): the pages that are not files in docs/, and links that leave docs/.

The site has three pages made of the project's README, CHANGELOG and CONTRIBUTING, and a page for each module of bytelm,
made of its docstrings. The Markdown files link to each other and to source files by relative paths, which also work
where they are read as plain files.
"""

import ast
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
API = "reference/api"
ABOUT_API = """The docstrings of all modules. A name that begins with an underscore is not part of the API. The modules
in the last section are bytelm's implementation: their names can change with any version."""
FOR_USERS = {  # sections of the API's first page, each with a pattern of its modules
    "Training and trained models": r"bytelm|bytelm\.(train|language_model|gpt|inference\.(model|score|convert\.\w+))",
    "Parts of a network": r"bytelm\.parts\.(?!shapes|ngram_counts|word_classes)\w+|bytelm\.precision",
    "Optimizers": r"bytelm\.optim(\.(by_group|groups|muon|muon_adamw|row_adagrad))?",
    "Data": r"bytelm\.data\.(base|bytes|corpora|packed|shards|tokenizer|train_tokenizer)",
    "Budget and schedules": r"bytelm\.(budget|schedules|units)|bytelm\.callbacks\.(schedules|throughput|time_budget)",
    "Callbacks": r"bytelm\.callbacks(\.(divergence|\w+_checkpoint|memory_limit|order|progress_bar|samples))?",
    "Errors": r"bytelm\.errors",
}
INSIDE = "Inside bytelm"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"<code.*?</code>", re.DOTALL)
OPTION_NAME = re.compile(r"(?<![\w-])--\w[\w.+]*(?![^<>]*>)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def modules() -> dict[str, Path]:
    """The modules with a page, each with its file relative to the project."""
    package = PROJECT / "bytelm"
    found = {}
    for folder in (package, package / "callbacks"):  # a link, which rglob does not follow
        for path in sorted(folder.rglob("*.py")):
            if not (path.parent / "__init__.py").exists():
                continue  # no package: the programs that the service puts on a path
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith("__main__") and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                found[name] = path.relative_to(PROJECT)
    return dict(sorted(found.items()))


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not files in docs/."""
    for source, page in PAGES.items():
        text = relinked((PROJECT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    lines = ["# API\n", ABOUT_API]
    listed = modules()
    for title, names in sections(listed).items():
        lines.append(f"\n## {title}\n")
        # The site's search finds guides before modules, and no implementation.
        search = "exclude: true" if title == INSIDE else "boost: 0.3"
        for name in names:
            docstring = ast.get_docstring(ast.parse((PROJECT / listed[name]).read_text(encoding="utf-8"))) or ""
            first, _, _ = docstring.partition("\n\n")
            lines.append(f"- [{name}]({name}.md): {' '.join(first.split())}")
            text = f"---\ntitle: {name}\nsearch: {{{search}}}\n---\n\n::: {name}\n"
            files.append(File.generated(config, f"{API}/{name}.md", content=text))
    files.append(File.generated(config, f"{API}/index.md", content="\n".join(lines) + "\n"))
    return files


def sections(names: Iterable[str]) -> dict[str, list[str]]:
    """The modules by the sections of the API's first page: those for users by subject, and then all others."""
    names = list(names)
    found = {title: [name for name in names if re.fullmatch(pattern, name)] for title, pattern in FOR_USERS.items()}
    for_users = {name for listed in found.values() for name in listed}
    return {**found, INSIDE: [name for name in names if name not in for_users]}


def on_page_content(html: str, **_: Any) -> str:
    """Keeps the name of an option on one line: browsers break lines after hyphens."""
    return CODE.sub(lambda code: OPTION_NAME.sub(r'<span class="option">\g<0></span>', code[0]), html)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Changes the links of a page that is a file in docs/."""
    if page.file.generated_by is not None:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def relinked(markdown: str, source: str, page: str) -> str:
    """A page's text with links of the site; a link to a file that the site does not have becomes its text.

    Args:
        markdown: The text.
        source: Its file, relative to the project.
        page: Its path in the site's Markdown.
    """
    blocks: list[str] = []

    def take_out(match: re.Match[str]) -> str:
        blocks.append(match[0])
        return f"\0{len(blocks) - 1}\0"

    def link(match: re.Match[str]) -> str:
        image, text, given = match.groups()
        path, hash_sign, anchor = given.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if (found := site_path(target)) is None:
            return f"{image}{text}"
        return f"{image}[{text}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{hash_sign}{anchor})"

    changed = LINK.sub(link, FENCED.sub(take_out, markdown))
    return re.sub("\0(\\d+)\0", lambda match: blocks[int(match[1])], changed)


def site_path(target: str) -> str | None:
    """The path in the site of a file of the project; None if the site does not have it."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/") and (PROJECT / target).is_file():
        return target.removeprefix("docs/")
    pages = {path.as_posix(): name for name, path in modules().items()}
    name = pages.get(f"bytelm/{target}" if target.startswith("callbacks/") else target)
    return None if name is None else f"{API}/{name}.md"
