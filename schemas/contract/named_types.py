"""Named types of Avro schemas: a record, an enum or a fixed that is defined once may be used again by its name.

Names are resolved as the Avro specification 1.12 says under "Names": a name without a dot is in the namespace that
encloses it.
"""

from __future__ import annotations

from typing import Any

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NAMED = frozenset({"record", "error", "enum", "fixed"})


def full_name(name: str, namespace: str) -> str:
    """Returns the full name of a type that is called `name` within `namespace` ("" for none)."""
    return name if "." in name or not namespace else f"{namespace}.{name}"


def of_definition(avro: dict[str, Any], namespace: str) -> str:
    """Returns the full name of the record, enum or fixed `avro`, which is defined within `namespace`."""
    return full_name(str(avro["name"]), str(avro.get("namespace") or namespace))


def namespace_of(name: str) -> str:
    """Returns the namespace of a full name, in which names within its definition are."""
    return name.rpartition(".")[0]


def spelled_out(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a record schema with the definition in place of each name of a type. A type that holds itself keeps its
    name where it does so. The result says what each field is; to Avro it would define types twice. A schema in which no
    name stands for a type is returned as it is."""
    return with_full_names(schema) if _has_references(schema) else schema


def with_full_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns `spelled_out` with the full name of each record, enum and fixed."""
    found: dict[str, Any] = _spelled(schema, "", {}, ())
    return found


def _has_references(avro: Any) -> bool:
    match avro:
        case str():
            return avro not in PRIMITIVES
        case list():
            return any(map(_has_references, avro))
        case {"fields": fields}:
            return any(_has_references(field["type"]) for field in fields)
        case {"items": inner} | {"values": inner} | {"type": (dict() | list()) as inner}:
            return _has_references(inner)
    return isinstance(avro, dict) and avro["type"] not in PRIMITIVES | NAMED


def _spelled(avro: Any, namespace: str, known: dict[str, dict[str, Any]], within: tuple[str, ...]) -> Any:
    """`known` are the definitions so far, by full name; `within` are the full names of those that are around this
    one."""
    match avro:
        case str() if avro not in PRIMITIVES:
            name = full_name(avro, namespace)
            return known.get(name, known.get(avro, avro)) if name not in within else avro
        case list():
            return [_spelled(branch, namespace, known, within) for branch in avro]
        case {"type": str() as type_} if type_ in NAMED:
            name = of_definition(avro, namespace)
            found = {key: value for key, value in avro.items() if key != "namespace"} | {"name": name}
            if "fields" in avro:
                around = (*within, name)
                inner = [
                    field | {"type": _spelled(field["type"], namespace_of(name), known, around)}
                    for field in avro["fields"]
                ]
                found["fields"] = inner
            known[name] = found
            return found
        case dict():
            keys = [key for key in ("type", "items", "values") if key in avro]
            return avro | {
                key: _spelled(avro[key], namespace, known, within) for key in keys if avro[key] not in ("array", "map")
            }
    return avro


def defined_once(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema `with_full_names` in which each type is defined where it comes first and used by its name after
    that, as Avro demands. A record that other versions define in other words gets a name of its own: what is read as
    a record may have any name."""
    found: dict[str, Any] = _once(schema, {})
    return found


def _once(avro: Any, known: dict[str, Any]) -> Any:
    match avro:
        case list():
            return [_once(branch, known) for branch in avro]
        case {"type": str() as type_, "name": str() as name} if type_ in NAMED:
            while name in known and "fields" in avro and known[name]["fields"] != avro["fields"]:
                name = f"{name}_"
            if name in known:
                return name
            known[name] = avro
            if "fields" not in avro:
                return avro
            inner = [field | {"type": _once(field["type"], known)} for field in avro["fields"]]
            return avro | {"name": name, "fields": inner}
        case dict():
            keys = [key for key in ("type", "items", "values") if isinstance(avro.get(key), (dict, list))]
            return avro | {key: _once(avro[key], known) for key in keys}
    return avro
