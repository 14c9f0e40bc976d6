"""Everything computed from the accuracy matrix, each with its formula: one matrix gives several "forgettings".

R[i, j] is the accuracy on test set j after training through experience i (0-based here, z experiences in all). Every
function takes an array `[..., z, z]` and returns `[...]`. Test sets weigh equally, whatever their size. With z = 1
nothing could be kept or foreseen: what compares experiences is then not a number ("n/a" in tables).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from cllib.errors import UserError, whole

Array = NDArray[np.float64]


def _matrix(r: ArrayLike) -> Array:
    matrix = np.asarray(r, dtype=np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix of shape {matrix.shape}: must be [..., z, z]")
    return matrix


def accuracy(r: ArrayLike) -> Array:
    """Acc = mean_j R[z-1, j]: mean accuracy at the end (CCM papers; "average accuracy" everywhere).

    The only one that does not ask for as many test sets as experiences.
    """
    return np.asarray(r, dtype=np.float64)[..., -1, :].mean(-1)


def over_time(r: ArrayLike) -> Array:
    """Acc over time = mean_ij R[i, j]: over all moments, whatever has been learned by then."""
    return np.asarray(r, dtype=np.float64).mean((-2, -1))


def plasticity(r: ArrayLike) -> Array:
    """Plast = mean_j R[j, j]: mean accuracy on what was just learned."""
    return np.diagonal(_matrix(r), axis1=-2, axis2=-1).mean(-1)


def stability(r: ArrayLike) -> Array:
    """S = mean_{j<z-1} R[z-1, j]: mean accuracy at the end on all but the last test set."""
    m = _matrix(r)
    return m[..., -1, :-1].mean(-1) if m.shape[-1] > 1 else m[..., 0, 0] * np.nan


def trade_off(r: ArrayLike) -> Array:
    """2 S P / (S + P) of `stability` and `plasticity`; 0 where both are 0."""
    s, p = stability(r), plasticity(r)
    return 2 * s * p / np.maximum(s + p, 1e-12)


def of_seen(r: ArrayLike) -> Array:
    """A_i = mean_{j<=i} R[i, j]: accuracy after every experience on the test sets so far, `[..., z]`."""
    m = _matrix(r)
    seen = np.tri(m.shape[-1])
    return (m * seen).sum(-1) / seen.sum(-1)


def incremental(r: ArrayLike) -> Array:
    """mean_i A_i of `of_seen`: "average incremental accuracy"."""
    return of_seen(r).mean(-1)


def of_task(r: ArrayLike, name: str) -> Array:
    """Of one task: "t3" is R[z-1, 2], on the third test set at the end; "l3" is R[2, 2], when it was just learned;
    "b3" is R[1, 2], just before; "s3" is the mean of R[2, :3], after it on all so far. "last" is R[z-1, z-1].

    Raises KeyError for another name, or a test set that there is not.
    """
    matrix = np.asarray(r, dtype=np.float64)
    if name == "last":
        return matrix[..., -1, -1]
    kind, number = name[:1], name[1:]
    rows = {"t": -1, "l": 0, "b": -1, "s": 0}
    if kind not in rows or not number.isdigit() or not (kind == "b") < int(number) <= matrix.shape[-1]:
        raise KeyError(name)
    task = int(number) - 1
    if kind == "s":
        return of_seen(matrix)[..., task]
    return matrix[..., -1 if kind == "t" else task + rows[kind], task]


def forgetting(r: ArrayLike) -> Array:
    """Forg = mean_{j<z-1} ( max_{i<z-1} R[i, j] - R[z-1, j] ), the Memory Head papers' definition.

    The maximum runs over *all* earlier rows, also those before test set j was learned; may be negative.
    """
    m = _matrix(r)
    return (m[..., :-1, :-1].max(-2) - m[..., -1, :-1]).mean(-1) if m.shape[-1] > 1 else m[..., 0, 0] * np.nan


def forgetting_chaudhry(r: ArrayLike) -> Array:
    """F = mean_{j<z-1} ( max_{j<=i<z-1} R[i, j] - R[z-1, j] ) (Chaudhry et al. 2018, eq. 3); may be negative."""
    m = _matrix(r)
    z = m.shape[-1]
    return _mean([m[..., j:-1, j].max(-1) - m[..., -1, j] for j in range(z - 1)], m)


def forgetting_clipped(r: ArrayLike) -> Array:
    """mean_{j<z-1} ( max_i R[i, j] - R[z-1, j] ) with the last row in the maximum: never negative (Mammoth, PyCIL)."""
    m = _matrix(r)
    return (m[..., :-1].max(-2) - m[..., -1, :-1]).mean(-1) if m.shape[-1] > 1 else m[..., 0, 0] * np.nan


def forgetting_first_last(r: ArrayLike) -> Array:
    """mean_{j<z-1} ( R[j, j] - R[z-1, j] ) = -BWT (Avalanche's Forgetting)."""
    return -backward_transfer(r)


def backward_transfer(r: ArrayLike) -> Array:
    """BWT = mean_{j<z-1} ( R[z-1, j] - R[j, j] ) (Lopez-Paz & Ranzato 2017)."""
    m = _matrix(r)
    return _mean([m[..., -1, j] - m[..., j, j] for j in range(m.shape[-1] - 1)], m)


def backward(r: ArrayLike) -> Array:
    """Bwd = max( 0, 2 / (z (z-1)) sum_{i>j} (R[i, j] - R[j, j]) ), the Memory Head papers' definition."""
    m = _matrix(r)
    z = m.shape[-1]
    gains = [m[..., i, j] - m[..., j, j] for i in range(z) for j in range(i)]
    return np.maximum(_mean(gains, m), 0)


def forward(r: ArrayLike) -> Array:
    """Fwd = 2 / (z (z-1)) sum_{i<j} R[i, j]: accuracy on what is still to come (Memory Head papers).

    No baseline is removed.
    """
    m = _matrix(r)
    z = m.shape[-1]
    return _mean([m[..., i, j] for i in range(z) for j in range(i + 1, z)], m)


def _mean(terms: list[Array], like: Array) -> Array:
    """Mean over a list of `[...]` arrays; not a number where the list is empty (z = 1)."""
    return np.mean(terms, axis=0) if terms else like[..., 0, 0] * np.nan


METRICS: dict[str, Callable[[ArrayLike], Array]] = {
    "Acc": accuracy,
    "Acc over time": over_time,
    "Forg": forgetting,
    "Bwd": backward,
    "Fwd": forward,
    "Forg (Chaudhry)": forgetting_chaudhry,
    "Forg (clipped)": forgetting_clipped,
    "Forg (first - last)": forgetting_first_last,
    "BWT": backward_transfer,
    "Plast": plasticity,
    "Stab": stability,
    "Trade-off": trade_off,
    "Acc incremental": incremental,
}


# --- from all tests: at borders, and of the curve, accuracy on an excerpt of every test set while training ---


def examined(experiences: int, every: int) -> NDArray[np.int64]:
    """The experiences (from 0) after which there is a test: every so many-th, and the last."""
    e = np.arange(experiences)
    return e[((e + 1) % every == 0) | (e == experiences - 1)]


def by_experience(r: ArrayLike, experiences: int, every: int) -> Array:
    """R with a row an experience, `[..., z, z]`, not numbers where there was no test; as it is where none lacks."""
    m = np.asarray(r, dtype=np.float64)
    rows = examined(experiences, every)
    if len(rows) == experiences or m.shape[-2:] != (len(rows), experiences):
        return m
    whole = np.full((*m.shape[:-2], experiences, experiences), np.nan)
    whole[..., rows, :] = m
    return whole


def minimum_accuracy(r: ArrayLike, curve: ArrayLike, steps: ArrayLike, ends: ArrayLike, every: int = 1) -> Array:
    """min-ACC = mean_{j<z-1} min_{k > end of j} A[k, j]: how low each old test set ever fell (De Lange et al. 2023).

    A: all tests after experience j, those of the curve and those at borders, rows i > j of R. r: `[..., rows, z]`,
    measured after every so many-th experience and the last; curve: `[..., K, z]`, after `steps: [K]`; ends: of the
    experiences, `[z]`. Returns `[...]`; not a number where there is no curve, no old test set (z = 1), or where test
    sets do not belong to experiences.
    """
    m, a, border = np.asarray(r, dtype=np.float64), np.asarray(curve, dtype=np.float64), np.asarray(ends)
    z = len(border)
    rows = examined(z, every)
    if z < 2 or not a.size or a.shape[-1] != z or m.shape[-2:] != (len(rows), z):
        return np.full(m.shape[:-2], np.nan)
    a = np.concatenate([a, m], -2)  # [..., K + rows, z]
    at = np.concatenate([np.asarray(steps), border[rows]])
    return np.mean([a[..., at > border[j], j].min(-1) for j in range(z - 1)], axis=0)


def worst_case_accuracy(r: ArrayLike, curve: ArrayLike, steps: ArrayLike, ends: ArrayLike, every: int = 1) -> Array:
    """WC-ACC = R[z-1, z-1] / z + (1 - 1/z) min-ACC (De Lange et al. 2023); never above Acc."""
    z = len(np.asarray(ends))
    low = minimum_accuracy(r, curve, steps, ends, every)
    return low if not z else np.asarray(r, dtype=np.float64)[..., -1, -1] / z + (1 - 1 / z) * low


FROM_TESTS = {"min-ACC": minimum_accuracy, "WC-ACC": worst_case_accuracy}


def half_width(std: float, n: int, level: float = 0.95) -> float:
    """Half of Student's t interval for a mean of n values with this sample standard deviation (infinite for n = 1)."""
    return float(stdtrit(n - 1, (1 + level) / 2) * std / np.sqrt(n)) if n > 1 else float("inf")


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Mean of n values and the half-width of its interval."""
    v = np.asarray(values, dtype=np.float64)
    return float(v.mean()), half_width(v.std(ddof=1), v.size, level) if v.size > 1 else float("inf")


# --- from the confusion matrix: C[r, c] counts samples of class r that were taken for c ---


def row_normalised(confusion: ArrayLike) -> Array:
    """C[r, c] / n_r, with n_r samples of class r: what each was taken for, `[..., C, C]`; 0 for absent classes."""
    counts = _matrix(confusion)
    return _shares(counts, counts.sum(-1)[..., :, None])


def released_normalised(confusion: ArrayLike) -> Array:
    """C[r, c] / n_c, as the released ViT-LR notebook draws it: rows sum to 1 only if all classes have as many samples.

    It means to divide by n_r, but what it divides by goes along the columns; only the diagonal is right. Columns of
    absent classes are 0.
    """
    counts = _matrix(confusion)
    return _shares(counts, counts.sum(-1)[..., None, :])


def grouped(confusion: ArrayLike, each: int) -> Array:
    """Counts between categories of `each` consecutive classes, `[..., C, C]` to `[..., C / each, C / each]`.

    Raises UserError if that does not divide the number of classes.
    """
    counts = _matrix(confusion)
    whole("each", each, 1)
    if counts.shape[-1] % each:
        raise UserError(f"each = {each}: must divide the number of classes, {counts.shape[-1]}")
    blocks = counts.shape[-1] // each
    return counts.reshape(*counts.shape[:-2], blocks, each, blocks, each).sum((-3, -1))  # [..., C / each, C / each]


def _shares(counts: Array, totals: Array) -> Array:
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
