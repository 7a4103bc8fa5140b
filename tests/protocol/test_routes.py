"""Routes: exact paths of one model and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import IMAGES, MODEL, UNHURRIED, model_of

from sameguard.protocol import DENIED, ModelContract, OpenInference, PlainJson, Route, RouteKind, TfServing

PINNED = model_of(IMAGES, version="3")

ALLOWED = [
    (OpenInference(MODEL), "GET", b"/v2", RouteKind.METADATA, "/v2"),
    (OpenInference(MODEL), "GET", b"/v2/health/live", RouteKind.HEALTH, "/v2/health/live"),
    (OpenInference(MODEL), "GET", b"/v2/health/ready", RouteKind.HEALTH, "/v2/health/ready"),
    (OpenInference(MODEL), "GET", b"/v2/models/digits", RouteKind.METADATA, "/v2/models/digits"),
    (OpenInference(MODEL), "GET", b"/v2/models/digits/ready", RouteKind.HEALTH, "/v2/models/digits/ready"),
    (OpenInference(MODEL), "POST", b"/v2/models/digits/infer", RouteKind.INFER, "/v2/models/digits/infer"),
    (OpenInference(PINNED), "POST", b"/v2/models/digits/infer", RouteKind.INFER, "/v2/models/digits/versions/3/infer"),
    (OpenInference(PINNED), "POST", b"/v2/models/digits/versions/3/infer", RouteKind.INFER, "/v2/models/digits/versions/3/infer"),
    (OpenInference(PINNED), "GET", b"/v2/models/digits/versions/3", RouteKind.METADATA, "/v2/models/digits/versions/3"),
    (OpenInference(PINNED), "GET", b"/v2/models/digits/versions/3/ready", RouteKind.HEALTH, "/v2/models/digits/versions/3/ready"),
    (TfServing(MODEL), "POST", b"/v1/models/digits:predict", RouteKind.INFER, "/v1/models/digits:predict"),
    (TfServing(MODEL), "GET", b"/v1/models/digits", RouteKind.HEALTH, "/v1/models/digits"),
    (TfServing(MODEL), "GET", b"/v1/models/digits/metadata", RouteKind.METADATA, "/v1/models/digits/metadata"),
    (TfServing(PINNED), "POST", b"/v1/models/digits:predict", RouteKind.INFER, "/v1/models/digits/versions/3:predict"),
    (TfServing(PINNED), "POST", b"/v1/models/digits/versions/3:predict", RouteKind.INFER, "/v1/models/digits/versions/3:predict"),
    (
        TfServing(model_of(IMAGES, label="stable")),
        "POST",
        b"/v1/models/digits/labels/stable:predict",
        RouteKind.INFER,
        "/v1/models/digits/labels/stable:predict",
    ),
    (PlainJson(MODEL), "POST", b"/predict", RouteKind.INFER, "/predict"),
    (PlainJson(MODEL), "GET", b"/health", RouteKind.HEALTH, "/health"),
]


@pytest.mark.parametrize(("dialect", "method", "path", "kind", "upstream"), ALLOWED)
def test_the_doors_of_the_model_lead_to_paths_that_we_wrote(dialect, method, path, kind, upstream):
    assert dialect.routes.classify(method, path) == Route(kind, upstream)


@pytest.mark.parametrize(
    "path",
    [
        b"//v2/models/digits/infer",
        b"/v2//models/digits/infer",
        b"/v2/models/digits//infer",
        b"/v2/models/digits/infer/",
        b"/v2/models/digits%2finfer",
        b"/v2/models/digits%2Finfer",
        b"/v2/models/%64igits/infer",
        b"/v2/models/digits/../digits/infer",
        b"/v2/models/other/../digits/infer",
        b"/v2/models/digits/./infer",
        b"/v2/models/digits/%2e%2e/digits/infer",
        b"/v2/models/digits/infer;x=1",
        b"/v2/models/digits/infer?x=1",
        b"/v2/models/digits/infer#x",
        b"/v2/models/digits/infer%00",
        b"/v2/models/digits\\infer",
        b"/V2/models/digits/infer",
        b"/v2/models/Digits/infer",
        b"/v2/models/digits/INFER",
        b"v2/models/digits/infer",
        b"http://127.0.0.1/v2/models/digits/infer",
        b"/v2/models/other/infer",
        b"/v2/models/digits/versions/1/infer",
        b"/v2/models/digits/versions//infer",
        b"/v2/models/digits/generate",
        b"/v2/models/digits/generate_stream",
        b"/v2/models/digits/infer_stream",
        b"/v2/models/digits/explain",
        b"/v2/models/digits/config",
        b"/v2/models/digits/stats",
        b"/v2/models/stats",
        b"/v2/models/digits/trace/setting",
        b"/v2/repository/index",
        b"/v2/repository/models/digits/load",
        b"/v2/repository/models/digits/unload",
        b"/v2/systemsharedmemory/region/r/register",
        b"/v2/cudasharedmemory/region/r/register",
        b"/v2/logging",
        b"/metrics",
        b"/",
        b"",
        b"*",
        b"\xff",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "post", ""])
def test_every_other_path_is_denied_whatever_the_method(path, method):
    for dialect in (OpenInference(MODEL), OpenInference(PINNED), TfServing(MODEL), PlainJson(MODEL)):
        assert dialect.routes.classify(method, path) is DENIED


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/digits:classify",
        b"/v1/models/digits:regress",
        b"/v1/models/digits:explain",
        b"/v1/models/digits/versions/4:predict",
        b"/v1/models/digits/labels/canary:predict",
        b"/v1/models/digits%3apredict",
        b"/v1/models",
        b"/v1/models/other:predict",
        b"/monitoring/prometheus/metrics",
    ],
)
def test_other_doors_of_tensorflow_serving_are_denied(path):
    for method in ("GET", "POST"):
        assert TfServing(PINNED).routes.classify(method, path) is DENIED


@pytest.mark.parametrize("row", ALLOWED)
def test_a_door_opens_for_its_own_method_only(row):
    dialect, method, path, *_ = row
    for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT"} - {method}:
        assert dialect.routes.classify(other, path) is DENIED


@UNHURRIED
@given(st.text("/vmodels2digtnfr.%A", max_size=30))
def test_no_path_but_the_written_ones_opens_a_door(path):
    table = OpenInference(MODEL).routes
    assert (table.classify("POST", path.encode()).kind is RouteKind.DENIED) == (path != "/v2/models/digits/infer")


def test_names_with_a_blank_have_one_spelling_in_a_path():
    dialect = OpenInference(ModelContract("my digits", IMAGES, 3))
    assert dialect.routes.classify("POST", b"/v2/models/my%20digits/infer").kind is RouteKind.INFER
    assert dialect.routes.classify("POST", b"/v2/models/my digits/infer") is DENIED
    assert dialect.routes.classify("POST", b"/v2/models/my+digits/infer") is DENIED
