"""Tables: CSV, TSV and Parquet, what `datasets` saves, and tars."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from disk import listing, save
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source
from fedpgp.data.sources.listing import Listing, divided
from fedpgp.errors import DataError


def table(tree, text, name="list.csv", **changes):
    root = tree("a.png", "b.png", "c.png")
    file = root / name
    file.write_text(text, encoding="utf-8")
    return listing(file, **changes)


def test_every_column(tree):
    found = table(
        tree,
        "File;category;Style;hospital;set\r\nc.png;dog;art;10;train\r\na.png;cat;photo;9;VAL\r\n\r\nb.png;cat;art;9;test\n",
    )
    assert [found.pictures(i).getpixel((0, 0))[0] for i in range(3)] == [2, 0, 1]
    assert (found.class_names, found.labels.tolist()) == (("cat", "dog"), [1, 0, 0])
    assert (found.domain_names, found.domains.tolist()) == (("art", "photo"), [0, 1, 0])
    assert (found.client_names, found.clients.tolist()) == (("9", "10"), [1, 0, 0])
    assert found.splits.tolist() == [0, 1, 2]
    assert found.pictures.place(1).endswith("a.png, row 2 of " + found.where)


def test_tsv_byte_order_mark_and_named_columns(tree):
    found = table(
        tree, "\ufeffwhere\twhat\na.png\tx, y\nb.png\tz\n", "l.tsv", image_column="where", label_column="what"
    )
    assert found.class_names == ("x, y", "z")


def test_integers_have_names_from_a_file_and_are_sorted_as_numbers(tree, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("zebra\nant\n")
    text = "path,label\na.png,1\nb.png,0\nc.png,1\n"
    found = table(tree, text, names=str(names))
    assert (found.class_names, found.labels.tolist()) == (("zebra", "ant"), [1, 0, 1])
    names.write_text("1 zebra\n2 ant\n")
    with raises(DataError, where="names.txt", problem="'0' (row 2)"):
        table(tree, text, names=str(names))
    names.write_text("zebra\n")
    with raises(DataError, where="names.txt", problem="'1' (row 1)"):
        table(tree, text, names=str(names))
    with raises(DataError, where="list.csv", problem="integers", remedy="data.names"):
        table(tree, text)


@pytest.mark.parametrize(
    ("text", "place", "fields"),
    [
        ("path,label\na.png,x\nb.png,y,z\n", "", {"problem": "3"}),
        (
            "a.png,x\nb.png,y\n",
            "",
            {"problem": "image", "remedy": "data.image_column: the table has the columns a.png, x"},
        ),
        ("path,file,label\na.png,a.png,x\n", "", {"problem": "'path' and 'file'", "remedy": "data.image_column"}),
        ("path,path,label\na.png,a.png,x\n", "", {"problem": "'path'"}),
        ("path,label\n", "", {"problem": "no row"}),
        ("", "", {"problem": "image", "remedy": "data.image_column"}),
        ('{"train": [["a.png", 0, "x"]]}', "", {"problem": "image", "remedy": "data.image_column"}),
        ("path,label\na.png,x\n../b.png,y\n", ", row 2: the path", {"got": "../b.png"}),
        ("path,label\na.png,x\nq/../../b.png,y\n", ", row 2: the path", {"got": "q/../../b.png"}),
        ("path,label\n/etc/b.png,y\n", ", row 1: the path", {"got": "/etc/b.png"}),
        ("path,label\na.png,x\n,y\n", ", row 2: the path", {"got": ""}),
        ("path,label\na.png,x\nb.png, \n", ", row 2, column 'label'", {"problem": "empty"}),
        (
            "path,label,split\na.png,x,train\nb.png,x,3\n",
            ", row 2, column 'split'",
            {"allowed": "train, validation or test", "got": "3"},
        ),
    ],
)
def test_wrong_tables_are_refused(tree, text, place, fields):
    with raises(DataError, where=f"list.csv{place}", **fields):
        table(tree, text)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40))
def test_clients_of_many_classes_have_something_to_be_tested_on(rows):
    labels, clients = np.array(rows).T
    found = Listing("made", "made", None, tuple("abcd"), labels, client_names=tuple("uvwxyz"), clients=clients)
    of_split = divided(found, DataConfig())
    test, train = of_split == 2, of_split == 0
    left = {label: int(train[labels == label].sum()) for label in set(labels.tolist())}
    assert min(left.values()) > 0, "no class is left without a training image"
    for client in set(clients.tolist()):
        own = clients == client
        if own.sum() > 1 and not test[own].any():
            assert all(left[label] + (of_split[labels == label] == 1).sum() == 1 for label in labels[own].tolist())


def test_files_that_are_not_tables(tree):
    root = tree("a.png")
    for name in ("b.csv", "b.parquet"):
        (root / name).write_bytes((root / "a.png").read_bytes())
        with raises(DataError, where=name):
            listing(root / name)


def test_missing_files_and_links_out_are_found_before_any_work(tree, tmp_path):
    root = tree("a.png", "b.png")
    file = root / "list.csv"
    file.write_text("path,label\na.png,x\nb.png,x\nnone.png,x\n")
    with raises(DataError, where=f"none.png, row 3 of {file}", problem="1 of 1", remedy=str(file)):
        load_source(DataConfig(source=str(file)))
    (root / "none.png").symlink_to(save(tmp_path / "other.png"))
    with raises(DataError, where=f"none.png, row 3 of {file}", remedy="--set data.follow_links=true"):
        load_source(DataConfig(source=str(file)))
    assert len(load_source(DataConfig(source=str(file), follow_links=True)).test) == 1


def test_absolute_paths_below_the_table_are_read_and_others_refused(tree):
    root = tree("x/a.png", "x/b.png")
    table = root / "list.csv"
    table.write_text(f"path,label\n{root}/x/a.png,ant\nx/b.png,bee\n")
    absolute = listing(table)
    table.write_text("path,label\nx/a.png,ant\nx/b.png,bee\n")
    assert absolute.pictures.paths.equals(listing(table).pictures.paths)
    for outside in (f"{root}/../a.png", f"{root}x/a.png", "/etc/a.png"):
        table.write_text(f"path,label\n{outside},ant\n")
        with raises(DataError, where="row 1: the path", got=outside.replace(f"{root}/", "")):
            listing(table)


def test_paths_of_windows_get_a_remedy(tree):
    root = tree("x/a.png", "x/b.png")
    (root / "list.csv").write_text("path,label\nx\\a.png,ant\nx\\b.png,ant\n")
    with raises(DataError, where="x\\a.png, row", problem="missing", remedy="\\"):
        load_source(DataConfig(source=str(root / "list.csv")))


def test_parquet_of_paths(tree):
    root = tree("a.png", "b.png")
    pa.parquet.write_table(pa.table({"path": ["b.png", "a.png"], "label": ["x", "y"]}), root / "l.parquet")
    found = listing(root / "l.parquet")
    assert (found.class_names, found.labels.tolist()) == (("x", "y"), [0, 1])
    assert found.pictures(0).getpixel((0, 0))[0] == 1


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def dataset(datasets, shades):
    features = datasets.Features(img=datasets.Image(), kind=datasets.ClassLabel(names=["dog", "cat"]))
    rows = {"img": [{"bytes": png(shade), "path": None} for shade in shades], "kind": [s % 2 for s in shades]}
    return datasets.Dataset.from_dict(rows, features)


@pytest.mark.parametrize("form", ["dictionary", "one", "parquet", "file"])
def test_what_datasets_saves(home, tmp_path, form):
    train, test = dataset(home, range(6)), dataset(home, range(10, 14))
    path = tmp_path / "saved"
    if form == "dictionary":
        home.DatasetDict(test=test, train=train).save_to_disk(path)
    elif form == "one":
        train.save_to_disk(path)
    else:
        (path / "data").mkdir(parents=True)
        train.to_parquet(path / "data/train-00000-of-00001.parquet")
        test.to_parquet(path / "data/test-00000-of-00001.parquet")
    found = listing(path / "data/train-00000-of-00001.parquet" if form == "file" else path)
    shades = [*range(6), *(range(10, 14) if form in ("dictionary", "parquet") else ())]
    assert found.class_names == ("dog", "cat")
    assert found.labels.tolist() == [shade % 2 for shade in shades]
    assert [found.pictures(i).getpixel((0, 0))[0] for i in range(len(shades))] == shades
    assert found.pictures.fingerprint(np.array([3, 1])) != found.pictures.fingerprint(np.arange(2))
    assert (found.splits is None) == (len(shades) == 6)
    if found.splits is not None:
        assert found.splits.tolist() == [0] * 6 + [2] * 4


@pytest.mark.parametrize("form", ["file", "directory", "relative"])
@pytest.mark.parametrize(("name", "sibling"), [("run[1]", "run1"), ("a*", "ab"), ("q?", "qq")])
def test_a_path_is_no_pattern(home, tmp_path, monkeypatch, form, name, sibling):
    for shade, directory in enumerate((name, sibling)):
        (tmp_path / directory).mkdir()
        columns = {"image": [{"bytes": png(shade), "path": None}], "label": ["ant"]}
        pa.parquet.write_table(pa.table(columns), tmp_path / directory / "train.parquet")
    if form == "relative":
        monkeypatch.chdir(tmp_path / name)
    path = {"file": tmp_path / name / "train.parquet", "directory": tmp_path / name, "relative": "train.parquet"}[form]
    found = listing(path)
    assert [found.pictures(i).getpixel((0, 0))[0] for i in range(len(found.labels))] == [0]


def test_a_path_that_datasets_would_take_for_several_is_refused(home, tmp_path):
    (tmp_path / "a::b").mkdir()
    pa.parquet.write_table(pa.table({"image": [b""], "label": ["ant"]}), tmp_path / "a::b/train.parquet")
    with raises(DataError, where="a::b", problem="::"):
        listing(tmp_path / "a::b")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["0.0", "1.0", "0.0"], [0, 1, 0]),
        (["True", "false", "TRUE"], [1, 0, 1]),
        (["1e0", "0", "0"], [1, 0, 0]),
        ([0.0, 1.0, 0.0], [0, 1, 0]),
        ([True, False, True], [1, 0, 1]),
        (np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (pa.array(["1", "0", "1"]).dictionary_encode(), [1, 0, 1]),
        ([b"1", b"0", b"1"], [1, 0, 1]),
    ],
)
def test_labels_have_the_type_that_they_are_written_in(tree, labels, said):
    """0.0, 1.0, True and False must not become class names."""
    root = tree("a.png", "b.png", "c.png")
    (root / "classes.txt").write_text("ant\nbee\n")
    columns = {"path": pa.array(["a.png", "b.png", "c.png"]).dictionary_encode(), "label": labels}
    pa.parquet.write_table(pa.table(columns), root / "list.parquet")
    found = listing(root / "list.parquet")
    assert (found.class_names, found.labels.tolist()) == (("ant", "bee"), said)
    if isinstance(labels[0], str):
        rows = "".join(f"{name}.png,{label}\n" for name, label in zip("abc", labels, strict=True))
        (root / "list.csv").write_text("path,label\n" + rows)
        assert listing(root / "list.csv").labels.tolist() == said
    (root / "classes.txt").unlink()
    with raises(DataError, where="list.parquet", problem="integers", remedy="data.names"):
        listing(root / "list.parquet")


@pytest.mark.parametrize(
    ("labels", "row", "fields"),
    [
        (["cat", "['a', 'b']", "dog"], 2, {"got": "['a', 'b']", "remedy": "data.label_column"}),
        (["0", "1", "0.5"], 3, {"got": "0.5"}),
        ([0.0, 0.25, 1.0], 2, {"got": "0.25"}),
        (["{1}", "a", "b"], 1, {"got": "{1}"}),
        ([1.0, None, 0.0], 2, {"problem": "empty", "remedy": "--set data.drop_unlabelled=true"}),
        ([1.0, 0.0, float("nan")], 3, {"problem": "empty", "remedy": "--set data.drop_unlabelled=true"}),
        (["1", "nan", "0"], 2, {"problem": "empty"}),
        ([0, -1, 1], 2, {"problem": "-1", "remedy": "--set data.drop_unlabelled=true"}),
        ([[0], [1], [0, 1]], None, {"allowed": "texts or numbers", "remedy": "data.label_column"}),
        ([{"a": 1}] * 3, None, {"got": "struct<a: int64>"}),
        (np.array(["2020-01-01"] * 3, "datetime64[s]"), None, {"allowed": "texts or numbers"}),
    ],
)
def test_labels_that_are_not_classes_are_reported_by_column_and_row(tree, labels, row, fields):
    root = tree("a.png", "b.png", "c.png")
    pa.parquet.write_table(pa.table({"path": ["a.png", "b.png", "c.png"], "label": labels}), root / "list.parquet")
    where = f"list.parquet{f', row {row}' if row else ''}, column 'label'"
    with raises(DataError, where=where, **fields):
        listing(root / "list.parquet")


def test_rows_without_a_label_are_left_out_on_request(tree):
    root = tree("a.png", "b.png", "c.png")
    (root / "classes.txt").write_text("ant\nbee\n")
    rows = "path,label,client\na.png,-1,9\nb.png,0,10.0\nc.png,nan,10.0\nb.png,,8\nnone.png,1,9\n"
    (root / "list.csv").write_text(rows)
    found = listing(root / "list.csv", drop_unlabelled=True)
    assert (found.labels.tolist(), found.client_names, found.clients.tolist()) == ([0, 1], ("9", "10"), [1, 0])
    assert found.ignored == {"row without a label": 3}
    assert found.pictures(0).getpixel((0, 0))[0] == 1
    with raises(DataError, where="none.png, row 5 of"):
        found.pictures.fingerprint(np.arange(2))
    with raises(DataError, where="list.csv, column 'label'", remedy="data.label_column"):
        table(tree, "path,label\na.png,\nb.png,\n", drop_unlabelled=True)


def test_classes_without_an_image_are_left_out_on_request(tree):
    root = tree(*(f"{name}/{number}.png" for name in ("ant", "bee") for number in range(4)))
    (root / "cat").mkdir()
    with raises(DataError, problem="'cat'", remedy="--set data.drop_unused_classes=true"):
        load_source(DataConfig(source=str(root)))
    (root / "classes.txt").write_text("cat\nbee\nant\n")
    found = load_source(DataConfig(source=str(root), drop_unused_classes=True))
    assert found.class_names == ("bee", "ant") and set(found.train.labels.tolist()) == {0, 1}
    assert listing(root, drop_unused_classes=True).ignored["class without an image"] == 1


def test_nul_in_a_table_is_refused(tree):
    with raises(DataError, where="row 1: the path", got="a\0.png"):
        table(tree, "path,label\na\0.png,x\n")
    root = tree("a.png", "b.png")
    (root / "list.csv").write_text("path,label\na.png,x\0\nb.png,y\n")
    with raises(DataError, where="list.csv", problem="the class name"):
        load_source(DataConfig(source=str(root / "list.csv")))


@pytest.mark.parametrize("name", ["fold", "Set", "partition"])
def test_numbers_of_folds_are_not_splits(tree, name):
    text = f"path,label,{name}\na.png,x,0\nb.png,y,4\nc.png,y,2\n"
    found = table(tree, text)
    assert found.splits is None and found.ignored == {f"column {name}, whose numbers are not splits": 3}
    with raises(DataError, where=f"row 1, column {name!r}", allowed="train, validation or test", got="0"):
        table(tree, text, split_column=name)
    with raises(DataError, where="row 1, column 'split'", allowed="train, validation or test", got="0"):
        table(tree, text.replace(name, "split"))


def test_a_column_of_bytes_beside_paths_has_no_use(tree):
    root = tree("a.png", "b.png")
    columns = {"path": ["b.png", "a.png"], "label": ["x", "y"], "embedding": [b"1", b"2"], "box": [{"x": 1}, {"x": 2}]}
    pa.parquet.write_table(pa.table(columns), root / "l.parquet")
    found = listing(root / "l.parquet")
    assert found.pictures(0).getpixel((0, 0))[0] == 1
    assert found.ignored == {"column embedding": 2, "column box": 2}
    pa.parquet.write_table(pa.table({"path": [3, 4], "label": ["x", "y"]}), root / "l.parquet")
    with raises(DataError, where="l.parquet, column 'path'", got="int64", remedy="data.image_column"):
        listing(root / "l.parquet")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_refused(tree, encoding):
    root = tree("a.png")
    (root / "l.csv").write_text("path,label\na.png,café\n", encoding=encoding)
    with raises(DataError, where="l.csv", remedy="UTF-8"):
        listing(root / "l.csv")


def test_a_split_whose_labels_are_hidden_can_be_left_out(home, tmp_path):
    features = home.Features(img=home.Image(), kind=home.ClassLabel(names=["dog", "cat"]))

    def part(shades, labels):
        rows = {"img": [{"bytes": png(shade), "path": None} for shade in shades], "kind": labels}
        return home.Dataset.from_dict(rows, features)

    home.DatasetDict(train=part([1, 2], [1, 0]), test=part([3, 4], [-1, -1])).save_to_disk(tmp_path / "saved")
    with raises(DataError, where="row 3, column 'kind'", problem="-1", remedy="--set data.drop_unlabelled=true"):
        listing(tmp_path / "saved")
    found = listing(tmp_path / "saved", drop_unlabelled=True)
    assert (found.labels.tolist(), found.splits.tolist()) == ([1, 0], [0, 0])
    several = home.Features(img=home.Image(), kind=home.List(home.ClassLabel(names=["dog", "cat"])))
    rows = {"img": [{"bytes": png(1), "path": None}], "kind": [[0, 1]]}
    home.Dataset.from_dict(rows, several).save_to_disk(tmp_path / "several")
    with raises(DataError, where="column 'kind'", allowed="texts or numbers"):
        listing(tmp_path / "several", label_column="kind")


@pytest.mark.parametrize("form", ["cls", "json"])
def test_tars(home, tmp_path, form):
    (tmp_path / "tars").mkdir()
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"tars/{split}-000.tar", "w") as tar:
            for i in range(4):
                label = str(i % 2).encode() if form == "cls" else b'{"label": "%s"}' % [b"ant", b"bee"][i % 2]
                for end, content in (("png", png(i)), (form, label)):
                    info = tarfile.TarInfo(f"{i:03}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (tmp_path / "tars/classes.txt").write_text("ant\nbee\n")
    found = listing(tmp_path / "tars")
    assert (found.class_names, found.labels.tolist()) == (("ant", "bee"), [0, 1] * 4)
    assert found.splits.tolist() == [0] * 4 + [2] * 4
    assert found.pictures(5).getpixel((0, 0))[0] == 1


def test_the_hub_without_a_network(home, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub\nmore")

    monkeypatch.setattr(home, "load_dataset", unreachable)
    with raises(DataError, where="hf:org/name", problem="'org/name'", remedy="save_to_disk") as error:
        listing("hf:org/name")
    assert "\n" not in str(error.value) and "HF_HUB_OFFLINE=1" in error.value.remedy
    with raises(DataError, where="data.source", allowed="hf:ORG/NAME", got="hf:name"):
        listing("hf:name")
