"""An oracle for training rows: token by token, as one would write it down."""

from __future__ import annotations


def packed_rows(documents: list[list[int]], context: int, bos: int | None, eos: int | None = None) -> list[list[int]]:
    """Full rows; every row and every document begins with `bos`, or ends with `eos` where there is no `bos`."""
    rows: list[list[int]] = []
    row: list[int] = []

    def put(token: int) -> None:
        row.append(token)
        if len(row) == context:
            rows.append(row.copy())
            row.clear()

    for document in filter(None, documents):
        begins = True
        for token in document + ([eos] if bos is None and eos is not None else []):
            if bos is not None and token != bos and (begins or not row):
                put(bos)
                if not row:  # it came to stand at the end of a row
                    put(bos)
            put(token)
            begins = False
    return rows
