"""What is wrong with a point is told before the first of them starts."""

from __future__ import annotations

from lit_unlearn.config.checks import check, check_training
from lit_unlearn.errors import UserError
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.work.trials import check_installed, ends


def check_points(sweep: Sweep) -> None:
    """Raises UserError for a point that is no run, by its number; of a search the corners of its space are tried."""
    points, search = sweep.points, sweep.config.search
    of_a_seed = len(points) // (len(sweep.config.seeds) or 1)
    points = points[:of_a_seed] + points[of_a_seed::of_a_seed]  # others differ in their seed alone
    if search is not None:
        check_installed()
        points = [points[0].having(end) for end in ends(search)]
    for point in points:
        config = point.config()
        try:
            check(config)
            check_training(config)
        except UserError as error:
            raise UserError(f"point {point.number}: {error}") from error
