"""Keeps the documents true: measured figures come out of files, printed output comes out of commands.

A document is README.md or a Markdown file below docs/. Two kinds of text in it are written by this package.

1. Generated blocks. `python -m tools.documents` writes what stands between the two comments::

       <!-- [[[cog show(figures.lengths()) ]]] -->
       | tokens, or keys | 1 | 16 | ...
       <!-- [[[end]]] -->

   The functions are those of `figures`, `machine` and `resources`; they read benchmarks/results/*.json and hw/spec.

2. Recorded commands. `python -m tools.documents --run` runs the commands of every block fenced as `console` and
   writes what they print below them (`tools.documents.recorded` has the rules)::

       $ alula info --config tiny

`--check` changes nothing and says what differs.
"""
