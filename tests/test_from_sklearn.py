"""A fitted classifier and a table become target, contexts and short contexts."""

import decimal
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

import imm_lib as imm


def people(n=60, seed=0, missing=True):
    """Mixed columns: floats and strings with missing values, integers, booleans, categories."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.normal(50, 10, n).round(1),
            "visits": rng.integers(0, 6, n),
            "region": rng.choice(["north", "south", "east"], n),
            "member": rng.random(n) < 0.5,
            "plan": pd.Categorical(rng.choice(["a", "b"], n), categories=["b", "a", "z"]),
            "income": rng.normal(size=n),
        }
    )
    if missing:
        frame.loc[rng.random(n) < 0.2, "age"] = np.nan
        frame.loc[rng.random(n) < 0.2, "region"] = np.nan
    score = frame["age"].fillna(50) / 10 - 5 + (frame["region"] == "north") + rng.normal(size=n)
    return frame, np.where(score > 0, "yes", "no")


def scorecard(frame, labels, columns):
    kinds = [c for c in columns if frame[c].dtype.kind not in "if"]
    numbers = [c for c in columns if c not in kinds]
    steps = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(), kinds),
    )
    return make_pipeline(steps, LogisticRegression()).fit(frame[columns], labels)


COLUMNS = [
    ["age", "region"],
    ["age"],
    ["region"],
    ["region", "member", "plan"],
    ["age", "visits"],
    ["visits", "member", "age", "plan"],
]


@pytest.mark.parametrize("columns", COLUMNS, ids="+".join)
@pytest.mark.parametrize("classes", [None, ["yes", "no"]])
def test_target_and_contexts_against_brute_force(columns, classes):
    old, old_labels = people(400, seed=1)
    frame, _ = people()
    model = scorecard(old, old_labels, columns)
    target, contexts, short = imm.from_sklearn(model, frame, columns, classes, bandwidth=0.5)
    expected = model.predict_proba(frame[columns])
    if classes:
        expected = expected[:, ::-1]
    assert target.classes == (classes or ["no", "yes"])
    assert np.array_equal(target(short).numpy(), expected)
    weights = contexts.log_weights(short[:20]).exp()
    for row, found in enumerate(weights):
        wanted = torch.zeros(len(frame), dtype=torch.float64)
        for point in range(len(frame)):
            log_w = 0.0
            for column in columns:
                a, b = frame[column].iloc[row], frame[column].iloc[point]
                if pd.isna(a) or pd.isna(b) or frame[column].dtype.kind not in "if":
                    same = (pd.isna(a) and pd.isna(b)) or (
                        not pd.isna(a) and not pd.isna(b) and a == b
                    )
                    log_w -= 0.0 if same else math.inf
                else:
                    log_w -= abs(a - b) / (0.5 * frame[column].std(ddof=0))
            wanted[point] = math.exp(log_w)
        torch.testing.assert_close(found.double(), wanted / wanted.sum())


@pytest.mark.parametrize("columns", COLUMNS, ids="+".join)
def test_decoding_undoes_encoding(columns):
    frame, labels = people()
    target, _, short = imm.from_sklearn(scorecard(frame, labels, columns), frame, columns)
    pd.testing.assert_frame_equal(target.decode(short), frame[columns], check_index_type=False)
    assert torch.equal(
        target.encode(frame.sample(frac=1, random_state=0)).sort(0).values, short.sort(0).values
    )


def test_estimators_train_with_a_mixed_short_context():
    frame, labels = people(seed=2)
    model = scorecard(*people(400, seed=1), ["age", "region"])
    target, contexts, short = imm.from_sklearn(model, frame, ["age", "region"])
    x = torch.randn(len(frame), 3, generator=torch.Generator().manual_seed(0))
    full = torch.nn.Linear(3, 2)
    y = target.label_ids(labels)
    assert y.tolist() == (labels == "yes").astype(int).tolist()

    def query(s, extended):
        return full(x[extended]).log_softmax(-1)

    exact = imm.ExactIMM(target, contexts)(query, short)
    sampled = imm.SampledIMM(target, contexts, k=3000, generator=torch.Generator().manual_seed(0))
    assert sampled(query, short).item() == pytest.approx(exact.item(), abs=5e-3)
    induced = (contexts.log_weights(short).exp().float() @ full(x).softmax(-1)).log()
    torch.testing.assert_close(exact.double(), -(target(short) * induced).sum(1).mean())
    lead = imm.premise.lead(query, contexts, target, short, y)
    assert math.isfinite(lead.ahead)


def test_categories_alone_serve_the_table_estimators():
    frame, labels = people()
    columns = ["region", "member"]
    target, contexts, short = imm.from_sklearn(scorecard(frame, labels, columns), frame, columns)
    assert isinstance(contexts, imm.GroupedContexts) and short.dtype == torch.long
    term = imm.MovingAverageIMM(target, target.num_short, 2)
    log_q = torch.randn(len(short), 2).log_softmax(-1).requires_grad_()
    term(log_q, short).backward()
    assert log_q.grad.isfinite().all() and target.num_short == len(frame[columns].drop_duplicates())


def test_each_distinct_row_is_asked_once():
    frame, labels = people()
    frame = pd.concat([frame, frame])
    model, asked = scorecard(frame, np.tile(labels, 2), ["age", "region"]), []

    class Counted:
        classes_ = model.classes_

        def predict_proba(self, x):
            asked.append(len(x))
            return model.predict_proba(pd.DataFrame(x, columns=["age", "region"]))

    target, _, short = imm.from_sklearn(Counted(), frame, ["age", "region"])
    assert asked == [len(frame[["age", "region"]].drop_duplicates())]
    target(short[:7])
    assert len(asked) == 1
    moved = short[:3].clone()
    moved[:, 1] += torch.tensor([0.0, 1.5, 1.5])
    target(moved), target(moved)
    assert asked[1:] == [2]


def test_the_bandwidth_gives_a_dozen_neighbours():
    for n, wanted in ((300, imm.integrations.classifier.NEIGHBOURS), (30, 10)):
        frame, labels = people(n, missing=False)
        model = scorecard(frame, labels, ["age", "income"])
        _, contexts, short = imm.from_sklearn(model, frame, ["age", "income"])
        found = 1 / contexts.log_weights(short).exp().square().sum(1)
        assert found.mean().item() == pytest.approx(wanted, rel=0.1)


def test_arrays_tensors_and_sparse_matrices():
    frame, labels = people(missing=False)
    x = frame[["age", "visits", "income"]].to_numpy()
    model = LogisticRegression(max_iter=1000).fit(x[:, [2, 0]], labels)
    tables = [x, torch.tensor(x), scipy.sparse.csr_matrix(x), scipy.sparse.coo_array(x), frame]
    for table in tables:
        columns = ["income", "age"] if table is frame else [2, 0]
        target, _, short = imm.from_sklearn(model, table, columns)
        decoded = np.asarray(target.decode(short))
        assert np.array_equal(decoded, x[:, [2, 0]])
        # by rows and by columns a product may round otherwise, on some processors
        assert np.array_equal(target(short).numpy(), model.predict_proba(decoded))


def test_arrays_of_strings_objects_and_booleans():
    rng = np.random.default_rng(0)
    text, y = rng.choice(["u", "v"], (40, 2)), rng.integers(0, 2, 40)
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(text, y)
    target, contexts, short = imm.from_sklearn(model, text, [0, 1])
    assert isinstance(contexts, imm.GroupedContexts)
    assert np.array_equal(target(short).numpy(), model.predict_proba(text))
    mixed = text.astype(object)
    mixed[:, 1] = rng.normal(size=40)
    mixed[3, 0] = np.nan
    steps = make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough")
    model = make_pipeline(steps, LogisticRegression()).fit(mixed, y)
    target, contexts, short = imm.from_sklearn(model, mixed, [0, 1])
    assert isinstance(contexts, imm.MixedContexts) and target.coding.numeric == (False, True)
    assert np.array_equal(target(short).numpy(), model.predict_proba(mixed))
    flags = rng.random((40, 1)) < 0.5
    model = LogisticRegression().fit(flags, y)
    target, _, short = imm.from_sklearn(model, flags, 0)
    assert np.array_equal(target(short).numpy(), model.predict_proba(flags))


def test_numbers_can_be_declared_categories():
    frame, labels = people(missing=False)
    model = LogisticRegression().fit(frame[["visits"]], labels)
    _, contexts, short = imm.from_sklearn(model, frame, "visits", categorical="visits")
    assert isinstance(contexts, imm.GroupedContexts)
    assert len(short.unique()) == frame["visits"].nunique()
    frame["zip"] = frame["visits"].where(frame["visits"] > 0)  # a float column with a missing level
    model = HistGradientBoostingClassifier().fit(frame[["zip", "age"]], labels)
    target, _, short = imm.from_sklearn(model, frame, ["zip", "age"], categorical=["zip"])
    assert np.array_equal(target(short).numpy(), model.predict_proba(frame[["zip", "age"]]))


def test_pandas_categories_of_numbers_are_categories():
    """A postcode is no quantity, although pandas gives its column out as integers."""
    frame, labels = people(missing=False)
    frame["zip"] = pd.Categorical(frame["visits"] * 1000)
    columns = ["zip", "age"]
    steps = make_column_transformer((OneHotEncoder(), ["zip"]), remainder="passthrough")
    model = make_pipeline(steps, LogisticRegression(max_iter=1000)).fit(frame[columns], labels)
    target, contexts, short = imm.from_sklearn(model, frame, columns)
    assert np.array_equal(target(short).numpy(), model.predict_proba(frame[columns]))
    other = torch.tensor(frame["visits"].to_numpy()[:, None] != frame["visits"].to_numpy())
    assert (contexts.log_weights(short).exp()[other] == 0).all()
    frame.loc[::5, "zip"] = None
    target, _, short = imm.from_sklearn(HALF, frame, ["zip"])
    pd.testing.assert_frame_equal(target.decode(short), frame[["zip"]])


def test_a_model_of_its_own_kind_gets_the_frame():
    frame, _ = people(missing=False)

    class Own:
        classes_ = ("no", "yes")

        def predict_proba(self, rows):
            p = 1 / (1 + np.exp(-rows["income"].to_numpy()))
            return np.stack([1 - p, p], 1)

    target, _, short = imm.from_sklearn(Own(), frame, ["income"])
    assert np.array_equal(target(short).numpy(), Own().predict_proba(frame))


def test_columns_like_ids_get_a_warning():
    frame, _ = people(missing=False)
    frame["id"] = frame["age"].index.astype(str)
    with pytest.warns(UserWarning, match=r"60 of 60 rows .*columns 'id'.*nothing to average"):
        imm.from_sklearn(HALF, frame, ["id", "age"])
    frame["id"] = np.arange(60).repeat(2)[:60].astype(str)
    imm.from_sklearn(HALF, frame, ["id", "age"])


def test_missing_numbers_stand_among_themselves():
    frame, labels = people()
    model = HistGradientBoostingClassifier().fit(frame[["age"]], labels)
    target, contexts, short = imm.from_sklearn(model, frame, ["age"])
    gone = torch.tensor(frame["age"].isna().to_numpy())
    weights = contexts.log_weights(short).exp()
    assert 0 < gone.sum() < len(gone) and (weights[gone][:, ~gone] == 0).all()
    torch.testing.assert_close(weights[gone][:, gone].amin(), 1 / gone.sum().double())
    assert np.array_equal(target(short).numpy(), model.predict_proba(frame[["age"]]))


def test_nullable_types_and_odd_indices():
    frame, _ = people()
    frame = frame.convert_dtypes().astype({"visits": "Int64", "member": "boolean"})
    frame.index = np.arange(len(frame))[::-1] * 2
    frame.loc[4, ["member", "visits"]] = pd.NA
    columns = ["visits", "member", "age"]
    target, contexts, short = imm.from_sklearn(HALF, frame, columns)
    pd.testing.assert_frame_equal(target.decode(short), frame[columns].reset_index(drop=True))
    assert contexts.points == len(frame)


def test_constant_and_single_row_tables():
    frame, labels = people(missing=False)
    frame["same"] = 3
    model = LogisticRegression().fit(frame[["same", "age"]], labels)
    _, contexts, short = imm.from_sklearn(model, frame, ["same", "age"])
    _, plain, other = imm.from_sklearn(
        LogisticRegression().fit(frame[["age"]], labels), frame, ["age"]
    )
    torch.testing.assert_close(contexts.log_weights(short), plain.log_weights(other))
    _, contexts, short = imm.from_sklearn(model, frame.head(1), ["same", "age"])
    assert contexts.log_weights(short).tolist() == [[0.0]]
    frame["same"] = np.nan
    target, contexts, short = imm.from_sklearn(HALF, frame, ["same"])
    assert contexts.counts.tolist() == [60] and target.decode(short)["same"].isna().all()


def test_a_search_and_columns_in_another_order():
    frame, labels = people(missing=False)
    grid = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [1.0]}).fit(
        frame[["age", "income"]], labels
    )
    target, _, short = imm.from_sklearn(grid, frame, ["income", "age"])
    assert np.array_equal(target(short).numpy(), grid.predict_proba(frame[["age", "income"]]))


def test_rows_that_no_training_row_is_like():
    frame, labels = people()
    target, contexts, short = imm.from_sklearn(
        scorecard(frame, labels, ["age", "region"]), frame, ["age", "region"]
    )
    other = frame.head(4).copy()
    other.loc[[1, 2], "region"] = "west"
    with pytest.raises(ValueError, match=r"2 of 4 rows have categories.*region=west.*target\.seen"):
        target.encode(other)
    assert target.seen(other).tolist() == [True, False, False, True]
    assert torch.equal(target.encode(other[target.seen(other)]), short[[0, 3]])
    with pytest.raises(ValueError, match="a group that no data point has: 99"):
        contexts.log_weights(torch.tensor([[99.0, 0.0]]))
    with pytest.raises(ValueError, match="combinations of categories"):
        target(torch.tensor([[99.0, 0.0]]))
    complete, labels = people(missing=False)
    target, *_ = imm.from_sklearn(scorecard(complete, labels, ["age"]), complete, ["age"])
    complete.loc[3, "age"] = np.nan
    with pytest.raises(ValueError, match="1 of 60 rows"):
        target.encode(complete)


def dropping():
    """Pipelines that are fitted on columns that they do not read."""
    for steps in (
        [(StandardScaler(), ["age"])],
        [(StandardScaler(), [0]), ("drop", [1, 2])],
        [(StandardScaler(), slice(0, 1)), ("drop", slice(1, 3))],
        [(StandardScaler(), ["age"]), ("drop", "visits")],
    ):
        model = make_pipeline(make_column_transformer(*steps), LogisticRegression())
        yield model.fit(FRAME[["age", "visits", "income"]], LABELS)


FRAME, LABELS = people(missing=False)
AGE = LogisticRegression().fit(FRAME[["age"]], LABELS)
POLARS = type("DataFrame", (), {"to_pandas": lambda self: FRAME})()
DAYS = pd.date_range("2020", periods=60, tz="UTC")
GONE = np.array([None, np.nan] * 30, dtype=object)
LINE = LinearRegression().fit(FRAME[["age"]], FRAME["income"])
HALF = type(
    "Half", (), {"classes_": [0, 1], "predict_proba": lambda self, x: np.full((len(x), 2), 0.5)}
)()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: (AGE.predict_proba(FRAME[["age"]]), FRAME, ["age"]),
            TypeError,
            "the fitted classifier itself",
        ),
        (
            lambda: (LogisticRegression, FRAME, ["age"]),
            TypeError,
            "got the class LogisticRegression",
        ),
        (lambda: (LogisticRegression(), FRAME, ["age"]), ValueError, "must be fitted"),
        (
            lambda: (LinearSVC().fit(FRAME[["age"]], LABELS), FRAME, ["age"]),
            TypeError,
            "CalibratedClassifierCV",
        ),
        (lambda: (LINE, FRAME, ["age"]), TypeError, "LinearRegression has none$"),
        (
            lambda: (
                MultiOutputClassifier(LogisticRegression()).fit(
                    FRAME[["age"]], np.stack([LABELS, LABELS], 1)
                ),
                FRAME,
                ["age"],
            ),
            ValueError,
            "one output, got several",
        ),
        (lambda: (AGE, FRAME, ["agee"]), ValueError, "no column 'agee'; did you mean age"),
        (lambda: (AGE, FRAME, ["age", "age"]), ValueError, "different columns"),
        (lambda: (AGE, FRAME, []), ValueError, "at least one"),
        (lambda: (AGE, FRAME["age"], ["age"]), ValueError, "must be a DataFrame"),
        (lambda: (AGE, FRAME[["age"]].to_numpy(), [0]), ValueError, "fitted on names: 'age'"),
        (lambda: (AGE, FRAME.head(0), ["age"]), ValueError, "at least one row"),
        (
            lambda: (AGE, pd.concat([FRAME, FRAME], axis=1), ["age"]),
            ValueError,
            "2 columns named 'age'",
        ),
        (lambda: (AGE, FRAME, ["age", "income"]), ValueError, "that the model reads, .*'income'"),
        (
            lambda: (scorecard(FRAME, LABELS, ["age"]), FRAME, ["income", "age"]),
            ValueError,
            "columns must be those that the model reads, got also 'income'",
        ),
        *(
            (lambda model=model: (model, FRAME, ["age", "visits"]), ValueError, "also 'visits'")
            for model in dropping()
        ),
        (lambda: (AGE, FRAME, ["age"], ["yes"]), ValueError, "it knows 'no', 'yes', got 'yes'"),
        (lambda: (AGE, FRAME, ["age"], [0, 1]), ValueError, "it knows 'no', 'yes', got 0, 1"),
        (
            lambda: (HALF, FRAME, ["age"], [False, True]),
            ValueError,
            "it knows 0, 1, got False, True",
        ),
        (
            lambda: (HALF, FRAME.assign(age=pd.Timestamp("2020-01-01")), ["age"]),
            TypeError,
            "numbers or categories",
        ),
        (lambda: (HALF, FRAME.assign(age=DAYS), ["age"]), TypeError, "got Timestamp"),
        (
            lambda: (HALF, FRAME.assign(age=[decimal.Decimal(1)] * 60), ["age"]),
            TypeError,
            "got Decimal",
        ),
        (lambda: (HALF, FRAME.assign(age=GONE), ["age"]), ValueError, "got None and nan"),
        (
            lambda: (HALF, np.ma.masked_array(np.zeros((3, 2)), np.eye(3, 2)), [0]),
            TypeError,
            "masked array",
        ),
        (lambda: (HALF, np.zeros((3, 2)), [True, False]), TypeError, "got True: no mask"),
        (lambda: (HALF, FRAME.assign(age=np.inf), ["age"]), ValueError, "finite numbers"),
        (lambda: (HALF, FRAME.assign(age=[[1]] * 60), ["age"]), TypeError, "hashable categories"),
        (lambda: (HALF, FRAME.assign(age=2**62 + 1), ["age"]), ValueError, "below 2\\^53"),
        (lambda: (HALF, [[1.0]], [0]), TypeError, "frame must be a pandas DataFrame"),
        (lambda: (HALF, POLARS, ["age"]), TypeError, "take its to_pandas"),
        (lambda: (HALF, np.zeros(3), [0]), ValueError, "2-D"),
        (lambda: (HALF, np.zeros((3, 2)), [2]), ValueError, "no column 2; it has 0, 1"),
        (
            lambda: (
                LogisticRegression().fit(np.zeros((4, 2)), [0, 1, 0, 1]),
                np.zeros((3, 2)),
                [0],
            ),
            ValueError,
            "the 2 that the model was fitted on, got 1",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        imm.from_sklearn(*call())


def test_bad_options_answers_and_labels():
    with pytest.raises(ValueError, match="categorical must name some of columns, got 'sex'"):
        imm.from_sklearn(AGE, FRAME, ["age"], categorical=["sex"])
    with pytest.raises(ValueError, match="bandwidth must be"):
        imm.from_sklearn(AGE, FRAME, ["age"], bandwidth=0.0)
    sure = type(
        "Sure", (), {"classes_": [0], "predict_proba": lambda self, x: np.ones((len(x), 1))}
    )
    with pytest.raises(ValueError, match="at least two classes"):
        imm.from_sklearn(sure(), FRAME, ["age"])
    for rows, message in (
        (np.ones((60, 2)), "sum to 1"),
        (np.full((60, 3), 1 / 3), "column for each"),
    ):
        wrong = type(
            "W",
            (),
            {"classes_": [0, 1], "predict_proba": lambda self, x, rows=rows: rows[: len(x)]},
        )
        with pytest.raises(ValueError, match=message):
            imm.from_sklearn(wrong(), FRAME, ["age"])
    target, _, short = imm.from_sklearn(AGE, FRAME, ["age"])
    with pytest.raises(ValueError, match="labels must be among 'no', 'yes', got 'maybe'"):
        target.label_ids(["yes", "maybe"])
    with pytest.raises(ValueError, match=r"labels must be \(n,\)"):
        target.label_ids(LABELS[:, None])
    with pytest.raises(ValueError, match=r"short must be \(B, 2\)"):
        target(short[:, 1:])
    with pytest.raises(ValueError, match=r"column 'age' must hold numbers, got 'old'"):
        target.encode(FRAME.astype({"age": object}).assign(age="old"))


@pytest.mark.parametrize(
    ("values", "group", "bandwidth", "error"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), 1.0, r"values must be \(n, d\)"),
        (
            torch.full((3, 1), math.nan),
            torch.zeros(3, dtype=torch.long),
            1.0,
            "values must be finite",
        ),
        (torch.zeros(3, 1), torch.zeros(2, dtype=torch.long), 1.0, ", as long as values"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), -1.0, "bandwidth must be"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), torch.ones(2), "bandwidth must be"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), torch.zeros(1), "positive finite"),
    ],
)
def test_mixed_contexts_refuse(values, group, bandwidth, error):
    with pytest.raises(ValueError, match=error):
        imm.MixedContexts(values, group, bandwidth)


def test_mixed_contexts_refuse_odd_queries():
    contexts = imm.MixedContexts(torch.zeros(2, 1), torch.tensor([0, 1]))
    for short in (
        torch.zeros(2),
        torch.zeros(0, 2),
        torch.zeros(1, 3),
        torch.full((1, 2), math.nan),
    ):
        with pytest.raises(ValueError, match="short must be"):
            contexts.log_weights(short)


def test_mixed_contexts_sample_what_they_weigh():
    group = torch.tensor([0, 0, 1, 0])
    contexts = imm.MixedContexts(torch.tensor([[0.0, 1], [1, 1], [0, 1], [3, 5]]), group, 2.0)
    short = torch.tensor([[0.0, 0.5, 1.0]])
    drawn = contexts.sample(short, 20000, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn.flatten(), minlength=4) / 20000
    torch.testing.assert_close(found, contexts.log_weights(short).exp()[0], atol=0.02, rtol=0)
    _, extended, log_w = contexts.support(short)
    assert extended.tolist() == [0, 1, 3] and log_w.exp().sum().item() == pytest.approx(1)
    assert contexts.state_dict() == {} and contexts.half().values.dtype == torch.float32


def test_without_pandas_and_sklearn():
    code = """
import sys
sys.modules.update(dict.fromkeys(["pandas", "sklearn", "scipy"]))
import numpy as np, imm_lib as imm
half = lambda self, x: np.full((len(x), 2), .5)
model = type("M", (), {"classes_": [0, 1], "predict_proba": half})()
target, _, short = imm.from_sklearn(model, np.eye(4), [0, 3])
print(target(short).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torch.Size([4, 2])\n"


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "Int64", "float16"])
@pytest.mark.parametrize("as_array", [False, True])
def test_other_rows_are_not_cut_to_the_training_rows_types(dtype, as_array):
    values = np.arange(24) % 4
    frame = pd.DataFrame({"visits": values.astype(float)}).astype(dtype)
    model = LogisticRegression().fit(frame.astype(float).to_numpy(), values > 1)
    if as_array:
        frame = frame.to_numpy(dtype=dtype.lower())
    target, _, short = imm.from_sklearn(model, frame, [0] if as_array else ["visits"])
    np.testing.assert_allclose(target(short).numpy(), model.predict_proba(values[:, None]))
    asked = np.array([[2.5], [3.0], [300.0], [-200.0], [1e6]])
    other = asked if as_array else pd.DataFrame({"visits": asked[:, 0]})
    found = target(target.encode(other)).numpy()
    np.testing.assert_allclose(found, model.predict_proba(asked), rtol=1e-6)


def test_of_nothing_there_is_nothing():
    target, _, short = imm.from_sklearn(AGE, FRAME, "age")
    empty = target.decode(short[:0])
    pd.testing.assert_frame_equal(empty, FRAME[["age"]][:0])
    assert len(empty) == 0 and target.label_ids([]).dtype == torch.long
    array = FRAME[["visits"]].to_numpy() // 4
    model = LogisticRegression().fit(array, LABELS)
    target, _, short = imm.from_sklearn(model, array, 0, categorical=0)  # a position, as columns
    assert target.decode(short[:0]).shape == (0, 1) and short.dtype == torch.long
