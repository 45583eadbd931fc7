"""Gradients of parameters: one record per parameter and step, with stated values where there is no token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from asysi.archive.dataset import MScanDataset
from asysi.archive.export import export
from asysi.archive.format import METRICS_DTYPE
from asysi.archive.measure import measure
from asysi.archive.series import Series
from asysi.bus.packet import (
    HEADER_DTYPE,
    NO_POSITION,
    NO_SAMPLE,
    NO_TOKEN,
    PARAMETER_STATISTICS,
    ActivationPacket,
    Kind,
    Reduction,
)
from asysi.capture.collector import Collector
from asysi.capture.gradients import BackwardPass
from asysi.capture.hooks import ActivationHooker
from asysi.capture.parameters import gradient_statistics
from asysi.contract.errors import ConfigError
from asysi.hook.finite import rows_not_finite
from asysi.model.globs import match_parameters
from asysi.model.points import HookPoint


class Two(torch.nn.Module):
    """Two layers; the first is recomputed where asked."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        call = (
            self.first
            if self.reentrant is None
            else lambda y: checkpoint(self.first, y, use_reentrant=self.reentrant)
        )
        return self.second(call(x))


X = torch.linspace(-1, 1, 2 * 5 * 4).reshape(2, 5, 4)


def captured(model, steps=1, scale=1.0, after=lambda model: None, **kinds):
    """Run a few steps; return the collected rows and the gradients that the parameters then had."""
    collector, found = Collector(), []
    names = dict(model.named_parameters())
    points = [HookPoint("second")]
    with ActivationHooker(model, points, collector, parameters=names, **kinds) as hooker:
        hooker.backward(BackwardPass(loss_scale=scale))
        for step in range(steps):
            x = (X + step).requires_grad_()
            (model(x).square().mean() * scale).backward()
            found.append({name: p.grad.clone() / scale for name, p in names.items()})
            after(model)
    assert hooker.errors == 0
    return collector.points, found


def expected(gradient):
    values = gradient.double().numpy().ravel()
    return [
        values.mean(),
        values.std(),
        np.linalg.norm(values),
        values.min(),
        values.max(),
        (values == 0).mean(),
        0,
        0,
    ]


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("scale", [1.0, 512.0])
def test_each_parameter_has_one_record_a_step(reentrant, scale):
    """Its statistics are those of `.grad` after the step's backward pass, unscaled, recomputed or not; no
    token is named.
    """
    torch.manual_seed(0)
    rows, gradients = captured(Two(reentrant), steps=3, scale=scale, after=lambda model: model.zero_grad())
    for name in gradients[0]:
        found = rows[f"{name}:parameter_gradient"]
        assert len(found.values) == 3
        for values, records, step in zip(found.values, found.records, gradients, strict=True):
            np.testing.assert_allclose(values[0], expected(step[name]), rtol=2e-5, atol=1e-7)
            (row,) = records
            fields = ("sample", "sequence", "position", "token", "flags")
            assert [int(row[field]) for field in fields] == [NO_SAMPLE, 0, NO_POSITION, NO_TOKEN, 0]


def test_accumulated_gradients_include_the_earlier():
    """Where `.grad` is not cleared, a step's record is of what has added up, as the optimiser will see it."""
    rows, gradients = captured(Two(), steps=3)
    norms = [values[0, 2] for values in rows["first.weight:parameter_gradient"].values]
    np.testing.assert_allclose(norms, [step["first.weight"].norm().item() for step in gradients], rtol=1e-5)
    assert norms[2] > norms[0]


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50),
    st.sampled_from(["", "nan", "inf", "all"]),
)
def test_statistics_are_those_of_numpy(values, bad):
    """Over finite elements, as in METRICS records; what is not finite is counted."""
    values = np.array(values, np.float32)
    dirty = {"": [], "nan": [np.nan], "inf": [np.inf, -np.inf], "all": []}[bad]
    given_values = np.array([np.nan, np.inf] if bad == "all" else [*values, *dirty], np.float32)
    found = dict(zip(PARAMETER_STATISTICS, gradient_statistics(torch.from_numpy(given_values)), strict=True))
    assert (found["nan_count"], found["inf_count"]) == (
        np.isnan(given_values).sum(),
        np.isinf(given_values).sum(),
    )
    if bad == "all":
        assert np.isnan([found[name] for name in ("mean", "std", "l2", "min", "max")]).all()
        return
    wide = values.astype(np.float64)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    np.testing.assert_allclose(found["mean"], wide.mean(), rtol=1e-6, atol=1e-6 * np.abs(wide).max())
    np.testing.assert_allclose(found["l2"], np.linalg.norm(wide), rtol=1e-6)
    np.testing.assert_allclose(found["std"], wide.std(), rtol=1e-5, atol=1e-6 * np.abs(wide).max())
    assert found["sparsity"] == pytest.approx((given_values == 0).mean())


def test_records_survive_the_archive_and_its_export(tmp_path):
    """METRICS records of a parameter hold the statistics and the stated values, also as Parquet."""
    import pyarrow.parquet

    collector = Collector()
    channel, packets = collector.channel, []

    class Kept:
        def __init__(self, name):
            self._inner, self._name = channel(name), name
            self.account, self.book = self._inner.account, self._inner.book

        def put(self, header, rows, *rest):
            self._inner.put(header, rows, *rest)
            values = collector.points[self._name].values[-1]
            packets.append(ActivationPacket(header[0].copy(), self._name, rows.copy(), None, values))
            packets[-1].header["sequence"] = len(packets)
            packets[-1].header["rows"] = len(values)
            return True

    collector.channel = Kept
    model = Two()
    with ActivationHooker(
        model, [HookPoint("second")], collector, parameters={"second.bias": model.second.bias}
    ) as hooker:
        hooker.backward(BackwardPass(reduction=Reduction.MEAN))
        model(X).square().mean().backward()
    gradient = packets[-1]
    assert (int(gradient.header["kind"]), int(gradient.header["reduction"])) == (
        Kind.PARAMETER_GRADIENT,
        Reduction.MEAN,
    )
    assert HEADER_DTYPE.itemsize == 192
    series = Series(tmp_path, 0, {})
    for packet in packets:
        series.append(packet)
    series.close()
    data = MScanDataset(tmp_path)
    name = "second.bias:parameter_gradient"
    (record,) = data.metrics(name)
    assert (
        record["grad_norm"] == record["l2"] == pytest.approx(model.second.bias.grad.norm().item(), rel=1e-6)
    )
    assert (int(record["document_position"]), int(record["token"])) == (NO_POSITION, NO_TOKEN)
    assert np.isnan([record["input_x_gradient"], record["delta_sc"]]).all()
    files = export(data, tmp_path / "out", output_format="parquet", content="metrics", points=name)
    table = pyarrow.parquet.read_table(files[0]).to_pylist()
    assert [(row["token"], row["position"], row["sample"]) for row in table] == [
        (NO_TOKEN, NO_POSITION, NO_SAMPLE)
    ]
    assert table[0]["l2"] == record["l2"]


def test_a_parameter_that_is_not_finite_is_counted():
    """NaN in a gradient shows in the count of rows that are not finite."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["kind"] = Kind.PARAMETER_GRADIENT
    for count in (0, 3):
        values = np.array([[0, 0, 0, 0, 0, 0, count, 0]], np.float32)
        packet = ActivationPacket(header, "w:parameter_gradient", np.zeros(1, METRICS_DTYPE), None, values)
        assert rows_not_finite(packet) == (count > 0)


def test_globs_name_each_parameter_once():
    """Tied weights have one record, under their first matching name; a glob without a match is an error."""
    names = {"embed.weight": 1, "layer.0.bias": 2, "head.weight": 1}
    assert match_parameters(["**.weight", "layer.*.bias"], names) == ["embed.weight", "layer.0.bias"]
    assert match_parameters(["head.*"], names) == ["head.weight"]
    assert match_parameters([], names) == ["embed.weight", "layer.0.bias"]
    with pytest.raises(ConfigError, match=r"spec.capture.parameters\[0\]: 'layer' matches no parameter"):
        match_parameters(["layer"], names)


def test_a_failing_measurement_changes_nothing(monkeypatch):
    """An exception while a gradient is measured is counted; `.grad` is what it is unwatched."""
    torch.manual_seed(0)
    model = Two()
    model(X).square().mean().backward()
    alone = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr("asysi.capture.parameters.gradient_statistics", lambda _values: 1 / 0)
    with ActivationHooker(model, [], Collector(), parameters=dict(model.named_parameters())) as hooker:
        model(X).square().mean().backward()
    assert hooker.errors == 4
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), alone, strict=True))


def test_measure_reads_the_statistics(tmp_path):
    """The archiver's record has each statistic under its own name."""
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["kind"], header["dtype"] = Kind.PARAMETER_GRADIENT, 0
    values = np.arange(8, dtype=np.float32)[None]
    rows = np.zeros(
        1, [("sample", "<u8"), ("sequence", "<u4"), ("position", "<u4"), ("token", "<i4"), ("flags", "<u4")]
    )
    record = measure(ActivationPacket(header, "w:parameter_gradient", rows, None, values))[0]
    assert [float(record[name]) for name in PARAMETER_STATISTICS] == list(range(8))
