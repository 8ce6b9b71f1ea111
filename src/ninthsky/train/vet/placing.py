"""Who goes where: lookups, sums into places that come twice, top k, sorting, counting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ninthsky.train.vet.bounds import Rule
from ninthsky.train.vet.case import Case, Operator, Probe, Wrong, check_equal
from ninthsky.train.vet.draws import all_of, normal, order, small, whole

TRAINED = (torch.float32, torch.bfloat16)
SINGLE = (torch.float32,)
HOST = "detour it to the host: n9 train vet --on-host NAME shows whether that mends it"


def _add_rows(into: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    return into.index_add(0, places, rows)


def _put_rows(into: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    return into.index_put((places,), rows)


def _put_more(into: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    return into.index_put((places,), rows, accumulate=True)


def _scatter(into: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    return into.scatter_add(1, places, rows)


def _nothing_to_add(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """No rows, no places: an expert or a rank without a token is an everyday case."""
    into = torch.randn(5, 8, generator=generator).to(dtype)
    none, rows = torch.empty(0, dtype=torch.int64), torch.empty(0, 8, dtype=dtype)
    far, no_place, no_row = into.to(device), none.to(device), rows.to(device)
    check_equal(far.index_add(0, no_place, no_row), into, "index_add")
    check_equal(far.index_put((no_place,), no_row), into, "index_put")
    check_equal(far[no_place], into[none], "index")
    check_equal(far.index_select(0, no_place), into[none], "index_select")
    check_equal(torch.bincount(no_place, minlength=4), torch.zeros(4, dtype=torch.int64), "bincount")
    check_equal(no_place.argsort(stable=True), none, "argsort")
    check_equal(no_row.topk(2, -1).values, rows[:, :2], "topk")


def _top(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """The k largest: any order where sorted=False, any of equals, but k different places that hold the k largest values."""
    for rows, columns, k, ties in (
        (301, 8, 2, 0),
        (97, 128, 8, 0),
        (33, 1025, 6, 0),
        (64, 16, 4, 3),
        (50, 64, 8, 1),
        (5, 4, 4, 2),
    ):
        x = (
            torch.randint(0, ties, (rows, columns), generator=generator)
            if ties
            else torch.randn(rows, columns, generator=generator)
        )
        x = x.to(dtype)
        got = x.to(device).topk(k, -1, sorted=False)
        values, places = got.values.cpu(), got.indices.cpu()
        if places.dtype != torch.int64 or values.dtype != dtype:
            raise Wrong(f"topk gives {values.dtype} and {places.dtype} where {dtype} and int64 are right")
        if places.shape != (rows, k) or int(places.min()) < 0 or int(places.max()) >= columns:
            raise Wrong("topk points outside of the row")
        if bool((places.sort(-1).values.diff(dim=-1) == 0).any()):
            raise Wrong(f"topk names one place twice ({'equal values' if ties else 'different values'})")
        what = f"topk {k} of {columns}{' with ties' if ties else ''}"
        check_equal(x.gather(1, places), values, f"{what}: values at its places")
        check_equal(values.sort(-1).values, x.sort(-1).values[:, -k:], what)


def _sorted(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    """Stable: equals stay in order, or the tokens of one expert would be mixed up with their answers' places."""
    for count, kinds in ((1, 1), (17, 2), (1000, 4), (4099, 8), (40_000, 3)):
        x = torch.randint(0, kinds, (count,), generator=generator)
        check_equal(x.to(device).argsort(stable=True), x.argsort(stable=True), f"stable argsort of {count}")
        values, places = x.to(device).sort(stable=True)
        check_equal(values, x.sort(stable=True).values, f"sort of {count}")
        check_equal(places, x.argsort(stable=True), f"places of sort of {count}")
    y = torch.randn(37, 301, generator=generator)
    check_equal(y.to(device).sort(-1, descending=True).values, y.sort(-1, descending=True).values, "descending rows")


def _counted(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    for count, high, least in ((1, 1, 8), (4099, 8, 8), (50_001, 129, 200), (100, 3, 64)):
        x = torch.randint(0, high, (count,), generator=generator)
        check_equal(torch.bincount(x.to(device), minlength=least), torch.bincount(x, minlength=least), f"bincount of {count}")


def _repeated(device: torch.device, dtype: torch.dtype, generator: Generator) -> None:
    for counts in ([3, 0, 1, 0, 0, 5], [0, 0, 0], [1000, 1, 0, 77]):
        times = torch.tensor(counts)
        x = torch.arange(len(counts)) * 7
        check_equal(
            x.to(device).repeat_interleave(times.to(device)), x.repeat_interleave(times), f"repeat_interleave by {counts}"
        )


OPERATORS = (
    Operator(
        "embedding",
        ("embedding", "embedding_dense_backward"),
        (
            Case(
                "rows that come often",
                all_of(normal(67, 48), whole(67, 5, 301)),
                lambda w, i: F.embedding(i, w),
                Rule(1, 300),
                back=True,
                dtypes=(torch.float32, torch.float64),
            ),
            Case(
                "one row only",
                all_of(normal(5, 16), whole(1, 2003)),
                lambda w, i: F.embedding(i, w),
                Rule(1, 2003),
                back=True,
                dtypes=(torch.float32,),
            ),
        ),
        "look rows up by index_select on the host",
    ),
    Operator(
        "gather",
        ("gather", "scatter_add"),
        (
            Case(
                "rows", all_of(normal(61, 33), whole(33, 61, 7)), lambda x, i: x.gather(1, i), Rule(1, 8, own=True), back=True
            ),
            Case(
                "scatter into places that come often",
                all_of(normal(31, 8), whole(3, 31, 70), normal(31, 70)),
                _scatter,
                Rule(72, 2, own=True),
                back=True,
                layouts=("plain", "transposed"),
            ),
        ),
        HOST,
    ),
    Operator(
        "index",
        ("index", "index_put", "index_copy"),
        (
            Case("rows in a new order", all_of(normal(97, 40), order(97)), lambda x, i: x[i], Rule(1, 2, own=True), back=True),
            Case(
                "rows that come often",
                all_of(normal(7, 40), whole(7, 99)),
                lambda x, i: x[i],
                Rule(1, 60, own=True),
                back=True,
                dtypes=TRAINED,
            ),
            Case("put", all_of(normal(97, 24), order(97), normal(97, 24)), _put_rows, Rule(1, 2, own=True), back=True),
            Case(
                "copied",
                all_of(normal(97, 24), order(97), normal(97, 24)),
                lambda into, places, rows: into.index_copy(0, places, rows),
                dtypes=TRAINED,
            ),
            Case(
                "put, adding",
                all_of(normal(9, 24), whole(9, 97), normal(97, 24)),
                _put_more,
                Rule(60, 2, own=True),
                back=True,
                dtypes=TRAINED,
            ),
            Case("by truth", all_of(normal(997)), lambda x: x[x > 0], dtypes=SINGLE),
        ),
        HOST,
    ),
    Operator(
        "index_add",
        ("index_add", "index_select"),
        (
            Case(
                "two rows to each place",
                all_of(normal(50, 48), lambda g: torch.randperm(100, generator=g) // 2, normal(100, 48)),
                _add_rows,
                Rule(3, 2, own=True),
                back=True,
            ),
            Case(
                "rows to few places",
                all_of(normal(5, 16), whole(5, 203), normal(203, 16)),
                _add_rows,
                Rule(90, 2, own=True),
                back=True,
                dtypes=TRAINED,
            ),
            Case(
                "whole numbers to few places",
                all_of(small(3, 7, 24), whole(7, 70), small(3, 70, 24)),
                _add_rows,
                dtypes=TRAINED,
                whole=True,
            ),
            Case(
                "all rows to one place",
                all_of(normal(3, 16), whole(1, 301), normal(301, 16)),
                _add_rows,
                Rule(302, 2, own=True),
                dtypes=SINGLE,
            ),
            Probe("nothing to add, look up or count", _nothing_to_add, TRAINED),
        ),
        "sort rows by place and add them with index_put(accumulate=True), or detour it to the host",
    ),
    Operator(
        "top k", ("topk",), (Probe("values, places, ties", _top, TRAINED),), "choose experts by a stable sort, cut after k"
    ),
    Operator("sort", ("sort", "argsort"), (Probe("stable", _sorted),), HOST),
    Operator("bincount", ("bincount",), (Probe("counts", _counted),), "count by index_add of ones"),
    Operator(
        "repeat and roll",
        ("repeat_interleave", "roll", "repeat"),
        (
            Probe("repeat by counts", _repeated),
            Case("roll", all_of(whole(1000, 301)), lambda x: torch.stack((x.roll(1), x.roll(-7))), dtypes=SINGLE),
            Case("repeat", all_of(whole(1000, 31)), lambda x: x.repeat(5), dtypes=SINGLE),
        ),
        HOST,
    ),
)
