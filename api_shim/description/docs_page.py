"""The documentation page: one HTML text made of the OpenAPI document, without a script or a foreign byte."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_COMPONENTS = "#/components/schemas/"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --get: #0a7; --post: #06c; --put: #b60;
  --patch: #85c; --delete: #c33; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0 0 .25rem; } h2 { margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; } a { color: inherit; }
code, pre { font: .875em/1.5 ui-monospace, monospace; } pre { overflow-x: auto; }
pre, details { border: 1px solid var(--line); border-radius: .5rem; }
pre { padding: .75rem; background: var(--soft); }
details { margin: .5rem 0; padding: 0 .9rem; } details[open] { padding-bottom: .75rem; }
summary { cursor: pointer; padding: .55rem 0; display: flex; gap: .75rem;
  align-items: baseline; flex-wrap: wrap; }
summary .path { font-weight: 600; } summary .what { opacity: .8; }
.verb { min-width: 4.2rem; text-align: center; border-radius: .3rem; color: #fff;
  font: 600 .75rem/1.6 system-ui;
  background: var(--get); } .POST { background: var(--post); } .PUT { background: var(--put); }
.PATCH { background: var(--patch); } .DELETE { background: var(--delete); }
.tag { font-size: .8rem; opacity: .75; margin-left: auto; }
table { border-collapse: collapse; width: 100%; margin: .25rem 0 .75rem; }
td, th { text-align: left; vertical-align: top;
  padding: .3rem .6rem .3rem 0; border-top: 1px solid var(--line); }
h4 { margin: .9rem 0 .2rem; }
"""


def page(document: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document."""
    operations: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = _operation(method.upper(), path, operation)
            operations.setdefault(operation["tags"][0], []).append(shown)
    schemas = document["components"]["schemas"]
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in [*operations, "schemas"])
    groups = "".join(
        f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(shown)}' for tag, shown in operations.items()
    )
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API</h1><p>{_prose(info['description'])}</p>"
        f'<nav>{links}<a href="/openapi.json">openapi.json</a></nav>{groups}'
        f'<h2 id="schemas">schemas</h2>{"".join(_schema(name, schemas[name]) for name in sorted(schemas))}'
        "</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    permission = "no token" if operation.get("security") == [] else operation.get("x-permission", "any user")
    body = operation.get("requestBody", {}).get("content", {})
    return (
        f'<details id="{escape(operation["operationId"])}"><summary>'
        f'<span class="verb {method}">{method}</span>'
        f'<code class="path">{escape(path)}</code><span class="what">{escape(operation["summary"])}</span>'
        f'<span class="tag">{escape(permission)}</span></summary>'
        + _table("Parameters", (_parameter_row(one) for one in operation["parameters"]))
        + _table("Body", (_body_row(media, one) for media, one in body.items()))
        + _table("Answers", (_answer_row(*item) for item in operation["responses"].items()))
        + "</details>"
    )


def _parameter_row(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    schema = parameter["schema"]
    choices = ", ".join(map(str, schema.get("enum", ())))
    limits = " to ".join(str(schema[name]) for name in ("minimum", "maximum") if name in schema)
    kind = choices or schema.get("format") or " ".join(filter(None, (str(schema.get("type", "")), limits)))
    place = f"{escape(parameter['in'])}<br><small>{escape(kind)}</small>"
    return _code(parameter["name"]), place, _prose(parameter.get("description", ""))


def _body_row(media: str, content: Mapping[str, Any]) -> tuple[str, str, str]:
    example = json.dumps(content["example"], ensure_ascii=False)
    return _code(media), _reference(content["schema"]), _code(example)


def _answer_row(status: str, answer: Mapping[str, Any]) -> tuple[str, str, str]:
    shapes = ", ".join(
        f"{_reference(one['schema'])} <small>{escape(media)}</small>"
        for media, one in answer.get("content", {}).items()
    )
    headers = ", ".join(_code(name) for name in answer.get("headers", {}))
    return _code(status), _prose(answer["description"]), f"{shapes}<br><small>{headers}</small>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return (
        f'<details id="schema-{escape(name)}"><summary><code class="path">{escape(name)}</code>'
        f'<span class="what">{_prose(schema.get("description", ""))}</span></summary>'
        f"<pre>{text}</pre></details>"
    )


def _table(title: str, rows: Iterable[Iterable[str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h4>{title}</h4><table>{lines}</table>" if lines else ""


def _reference(schema: Mapping[str, Any]) -> str:
    name = str(schema.get("$ref", "")).removeprefix(_COMPONENTS)
    return f'<a href="#schema-{escape(name)}">{escape(name)}</a>' if name else ""


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _prose(text: str) -> str:
    """Text with its `code` marked."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
