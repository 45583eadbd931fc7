"""The archive: `.mscan` segments, their writer, reader and repair, and the worker that fills them.

The layout is described in docs/mscan.md for readers in other languages.
"""
