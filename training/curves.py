"""Draw what the trainings have logged: `python -m training.curves --out ./training-out` writes one PNG for each.

Needs matplotlib (`pip install -e '.[bench]'`).
"""

import argparse
import json
import logging
from pathlib import Path

from training.loop import start_logging

log = logging.getLogger("training")


def draw(history: Path, picture: Path) -> None:
    """The losses of one history over the minutes, and the learning rate below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in history.read_text(encoding="utf8").splitlines()]
    minutes = [row["minutes"] for row in rows]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=[4, 1], layout="constrained"
    )
    for name in rows[-1]["losses"]:
        above.plot(minutes, [row["losses"].get(name) for row in rows], label=name, linewidth=1.2)
    above.set_title(f"{history.stem}: {rows[-1]['step']} steps")
    above.set_ylabel("loss")
    above.grid(alpha=0.3)
    above.legend()
    below.plot(minutes, [row["rate"] for row in rows], color="gray")
    below.set_ylabel("rate")
    below.set_xlabel("minutes")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw every history of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("training-out"), help="folder of the checkpoints")
    args = parser.parse_args()
    start_logging()
    for history in sorted(args.out.glob("*.jsonl")):
        picture = history.with_suffix(".png")
        draw(history, picture)
        log.info("wrote %s", picture)


if __name__ == "__main__":
    main()
