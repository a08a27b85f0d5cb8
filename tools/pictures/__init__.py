"""Pictures of docs/img, drawn by script: `python -m tools.pictures` writes them, `--check` says what differs.

They are plain SVG with a style sheet for light and one for dark pages. The same sources give the same bytes.
"""

from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "img"
STYLE = """
    text { font-family: "Helvetica Neue", Arial, sans-serif; fill: #1f2328; }
    .page { fill: #ffffff; } .frame { fill: #f6f8fa; stroke: #8b949e; }
    .memory { fill: #ddf4ff; stroke: #0969da; } .unit { fill: #fff1e5; stroke: #bc4c00; }
    .buffer { fill: #dafbe1; stroke: #1a7f37; } .control { fill: #fbefff; stroke: #8250df; }
    .wire { stroke: #424a53; fill: none; } .order { stroke: #8250df; fill: none; stroke-dasharray: 4 3; }
    .tip { fill: #424a53; } .purple { fill: #8250df; } .small { font-size: 11px; } .grid { stroke: #d0d7de; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .page { fill: #0d1117; } .frame { fill: #161b22; stroke: #6e7681; }
      .memory { fill: #0c2d6b; stroke: #58a6ff; } .unit { fill: #5a1e02; stroke: #f0883e; }
      .buffer { fill: #033a16; stroke: #3fb950; } .control { fill: #3c1e70; stroke: #bc8cff; }
      .wire { stroke: #b1bac4; } .order { stroke: #bc8cff; } .tip { fill: #b1bac4; } .purple { fill: #bc8cff; }
      .grid { stroke: #30363d; }
    }
"""
"""Classes that both pictures use."""
