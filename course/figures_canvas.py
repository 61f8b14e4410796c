"""What the pictures of the course are drawn with: colours, a canvas of boxes and arrows, a figure with axes.

matplotlib is imported by the functions that need it, so that a command can tell that it is missing.
Coordinates of a canvas are inches, with y downwards. Text stays text in SVG files, of 9 points or more.
"""

# Colours of Okabe and Ito (2008), and pale ones to write on; no picture tells anything by colour alone.
INK, GREY, BLUE, ORANGE, GREEN, RED = "#1b1f24", "#6b7078", "#0072b2", "#e69f00", "#009e73", "#d55e00"
WHITE, PALE_GREY, PALE_BLUE, PALE_ORANGE, PALE_GREEN = "#ffffff", "#e6e8eb", "#cfe6f5", "#fbe3b5", "#c9ebdd"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nanoreader", "text.parse_math": False, "font.size": 10,
         "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titleweight": "bold",
         "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
         "font.monospace": ["DejaVu Sans Mono", "Menlo", "Consolas"],
         "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
         **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
                         INK)}


def figure(width, height, *grid, **options):
    """A white figure of so many inches -> it, and its axes where a grid of rows and columns is given."""
    from matplotlib.figure import Figure
    fig = Figure((width, height), facecolor="white", layout="constrained" if grid else None)
    return (fig, fig.subplots(*grid, **options)) if grid else fig


def box(axes, x, y, width, height, words="", fill=WHITE, size=10, **look):
    """A rectangle, (x, y) its upper left corner, with words in its middle; look: options of a text."""
    from matplotlib.patches import Rectangle
    axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=INK, lw=0.8))
    axes.text(x + width / 2, y + height / 2, words, fontsize=size, ha="center", va="center", **look)


class Canvas:
    """A figure to put boxes, words and arrows on."""

    def __init__(self, width, height):
        self.fig = figure(width, height)
        self.axes = self.fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def text(self, x, y, words, size=9, ha="left", **look):
        self.axes.text(x, y, words, fontsize=size, ha=ha, va="center", **look)

    def title(self, x, y, words, **look):
        self.text(x, y, words, 10, weight="bold", **look)

    def box(self, *where, **look):
        """See box."""
        box(self.axes, *where, **look)

    def arrow(self, start, end, colour=INK, bend=0.0):
        self.axes.annotate("", end, start, arrowprops=dict(
            arrowstyle="->", color=colour, lw=1.2, shrinkA=0, shrinkB=0, connectionstyle=f"arc3,rad={bend}"))

    def legend(self, x, y, *entries):
        """Small boxes (fill, words, width of the entry) in a line."""
        for fill, words, width in entries:
            self.box(x, y - 0.1, 0.24, 0.2, "", fill)
            self.text(x + 0.32, y, words)
            x += width


def shown(tokenizer, i):
    """Token i in a cell: a space as ␣, a line break as ⏎; "pad" for None."""
    return "pad" if i is None else tokenizer.decode([i]).replace(" ", "␣").replace("\n", "⏎")
