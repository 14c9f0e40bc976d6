"""Streams: published sizes, orders and fingerprints (chapter 1, rules 2.2, 2.3 and 5.10)."""

import pytest
import torch

from cllib import streams
from cllib.datasets.noisy_classes import ns_digits
from cllib.errors import UserError
from cllib.randomness import generator
from cllib.streams import PLANE_STREAMS, Experience, Stream, image_stream, noisy_stream, orders, plane_stream

SIZES = {
    "modes-iid": ([1000], [500], 250),
    "modes-ci": ([200, 400, 100, 300], [100, 200, 50, 150], 300),
    "modes-cdi": ([100, 200, 50, 150] * 2, [50, 100, 25, 75] * 2, 250),
    "modes-cdid": ([100, 200, 50, 150] * 2, [50, 100, 25, 75] * 2, 250),
    "moons-iid": ([1000], [500], 250),
    "moons-ci": ([400, 100, 300, 200], [200, 50, 150, 100], 250),
    "moons-cdi": ([200, 50, 150, 100] * 2, [100, 25, 75, 50] * 2, 250),
    "moons-cdid": ([200, 50, 150, 100] * 2, [100, 25, 75, 50] * 2, 250),
}
COLUMN_SUMS = {
    "modes": ((-130.981864, -86.258477), (-64.51236, -43.450662)),
    "moons": ((68.573413, 213.942185), (34.08971, 107.104341)),
}
CDI_MEANS = {
    "modes": [
        (-0.7232, -0.5126),
        (-0.1382, 0.4220),
        (-0.8997, 0.0720),
        (0.2911, -0.4045),
        (-0.8085, 0.6508),
        (0.5407, -0.8536),
        (0.7964, 0.6515),
        (-0.6454, 0.0715),
    ],
    "moons": [
        (-0.1037, 0.2021),
        (0.1109, -0.2150),
        (-0.7579, 0.7452),
        (-0.5412, 0.3265),
        (0.3301, 0.7434),
        (0.5439, 0.3303),
        (0.5472, -0.3358),
        (0.7630, -0.7498),
    ],
}


def joined(parts: tuple[Experience, ...]) -> torch.Tensor:
    return torch.cat([torch.cat([e.x, e.y[:, None]], 1) for e in parts])


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows in lexicographic order, repetitions kept."""
    return x[torch.from_numpy(__import__("numpy").lexsort(x.T.numpy()))]


@pytest.mark.parametrize("name", PLANE_STREAMS)
def test_10_sizes(name: str) -> None:
    stream = plane_stream(name)
    train, test, validation = SIZES[name]
    assert [len(e) for e in stream.experiences] == train
    assert [len(e) for e in stream.tests] == test
    assert sum(len(e) for e in stream.validations) == validation
    assert len(stream) == 1000 and stream.inputs == 2 and stream.classes == 4


@pytest.mark.parametrize("name", PLANE_STREAMS)
def test_10_fingerprints(name: str) -> None:
    stream, (train, test) = plane_stream(name), COLUMN_SUMS[name[:5]]
    sums = [joined(part)[:, :2].double().sum(0) for part in (stream.experiences, stream.tests)]
    torch.testing.assert_close(torch.stack(sums), torch.tensor([train, test], dtype=torch.float64), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["modes", "moons"])
def test_10_cdi_means(name: str) -> None:
    means = torch.stack([e.x.mean(0) for e in plane_stream(f"{name}-cdi").experiences])
    torch.testing.assert_close(means, torch.tensor(CDI_MEANS[name]), atol=6e-5, rtol=0)


@pytest.mark.parametrize("name", ["modes", "moons"])
def test_10_all_orders_hold_the_same_training_points(name: str) -> None:
    rows = [in_rows(joined(plane_stream(f"{name}-{s}").experiences)) for s in streams.plane.PLANE_SCENARIOS]
    assert all(torch.equal(rows[0], other) for other in rows[1:])


@pytest.mark.parametrize("name", ["modes-cdid", "moons-cdid"])
def test_10_cdid_is_sorted_inside_each_step(name: str) -> None:
    for part in plane_stream(name).experiences:
        assert (part.x[:, 0].diff() >= 0).all()


def test_10_steps_hold_one_class_and_domain_in_order() -> None:
    labels = [(e.classes, e.domain) for e in plane_stream("moons-cdi").experiences]
    assert labels == [((c,), d) for d in (0, 1) for c in range(4)]
    assert [(e.classes, e.domain) for e in plane_stream("moons-ci").experiences] == [((c,), None) for c in range(4)]
    assert all((e.y == e.classes[0]).all() for e in plane_stream("modes-cdi").experiences)


def test_unknown_stream_is_named() -> None:
    with pytest.raises(UserError, match="'modes-dic': allowed are modes-iid"):
        plane_stream("modes-dic")


def test_ns_digits_is_noise_major_and_consecutive() -> None:
    stream = image_stream("ns-digits")
    assert len(stream.experiences) == 30 and len(stream) == 3600
    assert sum(len(e) for e in stream.tests) == 1500 and not stream.validations
    assert [(e.classes[0], e.domain) for e in stream.experiences[8:12]] == [(8, 0), (9, 0), (0, 1), (1, 1)]
    data = ns_digits()
    assert torch.equal(stream.experiences[13].x, data.train[1, 3])


def test_validation_covers_the_first_half_of_the_steps() -> None:
    stream = image_stream("ns-digits", validation=True)
    assert len(stream) == 3000 and len(stream.validations) == 15
    assert len(noisy_stream("again", ns_digits(sizes=(100, 20, 50))).validations) == 15


def test_mini_imagenet_needs_a_folder() -> None:
    with pytest.raises(UserError, match="data_dir"):
        image_stream("ns-imagenet")


def test_published_order_serves_all_runs_and_own_orders_differ() -> None:
    stream = plane_stream("modes-cdi")
    assert [o.shape for o in orders(stream, None)] == [(1, len(e)) for e in stream.experiences]
    drawn = orders(stream, [generator(s, "order") for s in (1, 2)])
    again = orders(stream, [generator(2, "order")])
    assert all(torch.equal(o.sort(1).values[0], torch.arange(o.shape[1])) for o in drawn)
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert all(torch.equal(o[1:], a) for o, a in zip(drawn, again, strict=True))


def test_cdid_keeps_its_order() -> None:
    assert all(o.shape[0] == 1 for o in orders(plane_stream("modes-cdid"), [generator(0, "order")]))


def test_thinned_stream_shows_every_kth_sample() -> None:
    stream = plane_stream("modes-cdi")
    thin = streams.thinned(stream, 5)
    assert torch.equal(thin.experiences[1].x, stream.experiences[1].x[::5])
    assert thin.tests == stream.tests and isinstance(thin, Stream) and len(thin) == 200
