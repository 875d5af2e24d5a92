"""Which schema a row follows, by its own fields: mixtures and tables with null-padded columns are read row by row.

A row is read by the first schema of the table whose fields it has, not null and not empty. A broken row is not read by
a weaker schema instead: one that has only some fields of an earlier schema is a bad row of that schema, unless the
later schema uses these fields too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from nncift.data.chats.context import CONTEXT, Context, is_filled, read_context
from nncift.data.chats.messages import BadRow, UndesiredRow, UnknownSchema, Values, truth
from nncift.data.schemas import Schema, Text

_KTO_MARKS = ("label", "kto_tag")  # of trl and ms-swift, and of LLaMA-Factory
_LAYOUTS = 1000  # sets of field names that are remembered
_NAMED = 20  # fields in a message


class _Layout(NamedTuple):
    """What is known of all rows with the same fields."""

    schemas: tuple[Schema, ...]  # that have their fields among them, in the order of the table
    context: tuple[str, ...]  # fields that can hold a system message, history or tools
    marks: tuple[str, ...]  # fields that can mark a row as undesired
    plain: Schema | None  # the first schema, if there is neither


class Detector:
    """Reads rows by the schema that each of them fits.

    Args:
        schemas: the candidates; the first that fits a row is taken.

    Attributes:
        rows: how many rows each schema has read.
        context: fields beside the turns that were used, with their numbers of rows.
        unused: such fields that hold something else, with their numbers of rows.
    """

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self.schemas = schemas
        self.rows: Counter[Schema] = Counter()
        self.context: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._rank = {schema: rank for rank, schema in enumerate(schemas)}

    def read(self, values: Values) -> tuple[Schema, Text]:
        """A row's schema and texts.

        Raises:
            BadRow: it cannot be used; `UndesiredRow`, it is marked as not to be trained on.
        """
        layout = self._layouts.get(tuple(values)) or self._layout(values)
        plain = layout.plain
        if plain is not None and plain in self.rows and len(self.rows) == 1:  # the usual case, made fast
            try:
                text = plain.read(values)
            except BadRow:  # perhaps of another schema
                pass
            else:
                self.rows[plain] += 1
                return plain, text
        return self._read(values, layout)

    def _read(self, values: Values, layout: _Layout) -> tuple[Schema, Text]:
        schema = self._schema(values, layout)
        if layout.marks and schema.fits(values):
            _check_desired(values, layout.marks, schema)
        context = read_context(values, layout.context) if layout.context else None
        text = schema.read(values, context)
        self.rows[schema] += 1
        if context is not None:
            self._count(context, layout, values)
        return schema, text

    def _layout(self, values: Values) -> _Layout:
        schemas = tuple(schema for schema in self.schemas if all(field in values for field in schema.fields))
        turns = {field for schema in schemas for field in (*schema.fields, *schema.optional)}
        context = tuple(field for field in CONTEXT if field in values and field not in turns)
        marks = tuple(field for field in _KTO_MARKS if field in values and field not in turns)
        plain = schemas[0] if schemas and not (schemas[0].kinds or context or marks) else None
        layout = _Layout(schemas, context, marks, plain)
        if len(self._layouts) < _LAYOUTS:
            self._layouts[tuple(values)] = layout
        return layout

    def _schema(self, values: Values, layout: _Layout) -> Schema:
        for fitting in layout.schemas:
            if fitting.fits(values):
                break
        else:
            return self._nearest(values, layout)
        if len(self.rows) == 1 and fitting is layout.schemas[0] and fitting in self.rows:
            return fitting  # the usual case: all rows follow one schema
        rank = self._rank[fitting]
        earlier = (schema for schema in (*layout.schemas, *self.rows) if self._rank[schema] < rank)
        return next((schema for schema in earlier if schema.is_broken(values, fitting)), fitting)

    def _nearest(self, values: Values, layout: _Layout) -> Schema:
        """The schema of a row that fits none: the first with something in its fields, else with its fields."""
        known = sorted({*layout.schemas, *self.rows}, key=self._rank.__getitem__)
        partly = (schema for schema in known if any(is_filled(values.get(field)) for field in schema.fields))
        empty = (schema for schema in (*self.rows, *layout.schemas) if any(field in values for field in schema.fields))
        schema = next(partly, None) or next(empty, None)
        if schema is None:
            raise UnknownSchema("", f"no known schema fits its fields ({field_names(values)})")
        return schema

    def _count(self, context: Context, layout: _Layout, values: Values) -> None:
        self.unused.update(context.unused)
        filled = (field for field in layout.context if is_filled(values.get(field)))
        self.context.update(field for field in filled if field not in context.unused)


def _check_desired(values: Values, marks: Sequence[str], schema: Schema) -> None:
    for field in marks:
        mark = values[field]
        if field == "label":  # a number or another text is that of a class
            in_table = schema.fields == ("prompt", "completion") and isinstance(mark, str)  # CSV has no truth values
            undesired = mark is False or (in_table and mark.strip().lower() == "false")
        else:
            undesired = mark is not None and not truth(mark, field)
        if undesired:
            raise UndesiredRow(field, "marked as undesired")


def field_names(fields: Sequence[str] | Values) -> str:
    """The names of fields, shortened, for messages."""
    names = list(fields)
    return ", ".join(str(name)[:40] for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
