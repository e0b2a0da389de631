"""Folders of images: recognised layouts, errors, and content."""

import os
from pathlib import Path

import numpy as np
import pytest
from disk import listing, save
from raising import raises

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import check_used, layout_of, load_source
from fedpgp.errors import DataError


@pytest.mark.parametrize(
    ("paths", "layout"),
    [
        (["cat/1.png", "dog/1.png"], "class-folders"),
        (["train/cat/1.png", "val/cat/1.png", "Test/dog/1.png"], "split-class-folders"),
        (["photo/cat/1.png", "photo/dog/1.png", "art/cat/1.png", "art/dog/1.png"], "domain-class-folders"),
        (["train/photo/cat/1.png", "train/art/cat/1.png", "test/photo/cat/1.png"], "split-domain-class-folders"),
        (["photo/train/cat/1.png", "photo/test/dog/1.png", "art/train/cat/1.png"], "domain-split-class-folders"),
    ],
)
def test_layouts_are_recognised_and_read(tree, paths, layout):
    root = tree(*paths)
    assert layout_of(root) == layout
    found = listing(root)
    levels = [part for part in layout.split("-") if part != "folders"]
    assert len(found.labels) == len(paths)
    for index in range(len(paths)):
        *parts, _ = found.pictures.file(index).relative_to(root).parts
        named = dict(zip(levels, parts, strict=True))
        assert found.class_names[found.labels[index]] == named["class"]
        if "domain" in named:
            assert found.domain_names[found.domains[index]] == named["domain"]
        if "split" in named:
            assert found.splits[index] == {"train": 0, "val": 1, "Test": 2, "test": 2}[named["split"]]
        assert found.pictures(index).getpixel((0, 0))[0] == paths.index("/".join([*parts, "1.png"]))
    assert list(found.class_names) == sorted(found.class_names)


@pytest.mark.parametrize(
    ("paths", "fields"),
    [
        (["train/1.png", "test/1.png"], {"problem": "test, train", "remedy": "CSV"}),
        (
            ["a/x/1.png", "b/y/1.png"],
            {"problem": "'a', 'b'", "remedy": "data.layout to split-class-folders or domain-class-folders"},
        ),
        (["train/x/1.png", "extra/x/1.png"], {"problem": "'extra', 'train'"}),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], {"problem": "'cat', 'dog'"}),
        (["a/1.png", "b/c/1.png"], {"problem": "'a'", "remedy": "CSV"}),
        (["a/b/c/d/1.png", "e/b/c/d/1.png"], {"problem": "4 folders"}),
        (
            ["a/b/c/1.png", "d/b/c/1.png"],
            {"problem": "3 folders", "remedy": "split-domain-class-folders or domain-split-class-folders"},
        ),
        (["train/p/x/1.png", "train/q/y/1.png"], {"problem": "'train'"}),
    ],
)
def test_ambiguous_folders_are_refused(tree, paths, fields):
    root = tree(*paths)
    with raises(DataError, where=str(root), **fields):
        layout_of(root)


def test_a_path_with_a_typing_error_is_named_with_what_is_there(tmp_path):
    (tmp_path / "later").mkdir()
    with raises(DataError, where=f"{tmp_path}/latr", remedy=f"Use {tmp_path}/later"):
        load_source(DataConfig(source=f"{tmp_path}/latr"))


@pytest.mark.parametrize("folder", ["images", "a/b", "a/b/c"])
def test_a_single_folder_is_suggested_as_the_source(tree, folder):
    root = tree(f"{folder}/x/1.png", f"{folder}/y/1.png")
    with raises(DataError, where=str(root)) as caught:
        layout_of(root)
    suggested = caught.value.remedy.split()[-1]
    assert suggested == str(root / folder) and layout_of(Path(suggested)) == "class-folders"


@pytest.mark.parametrize(
    ("paths", "others", "fields"),
    [
        (["a.png", "b.png", "c.JPG"], [], {"problem": "3 images"}),
        (["a.png"], ["notes/x.txt"], {"problem": "1 image "}),
        (["a.png"], ["list.csv"], {"remedy": "list.csv"}),
        ([], [], {"problem": "no image"}),
        ([], ["read me.txt", "x/y.txt", ".hidden.png"], {"problem": "no image"}),
    ],
)
def test_a_directory_without_folders_of_images_is_refused(tree, tmp_path, paths, others, fields):
    (tmp_path / "set").mkdir()
    for other in others:
        (tmp_path / "set" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / other).write_text("")
    root = tree(*paths)
    with raises(DataError, where=str(root), **fields) as error:
        load_source(DataConfig(source=str(root)))
    assert "CLASS/…" in error.value.remedy and "`fedpgp data layouts`" in error.value.remedy
    assert "domain-class-folders" not in str(error.value)


@pytest.mark.parametrize("paths", [["x\\1.png", "y\\1.png"], ["x/1.png", "y\\1.png"]])
def test_names_from_a_zip_file_of_windows_are_refused(tree, paths):
    with raises(DataError, where="\\1.png", problem="\\", remedy="unzip"):
        load_source(DataConfig(source=str(tree(*paths))))


def test_a_file_that_is_not_a_table_is_refused(tree, tmp_path):
    with raises(DataError, where="a.png", remedy="data.source"):
        load_source(DataConfig(source=str(tree("a.png") / "a.png")))
    (tmp_path / "a.doc").write_text("")
    with raises(DataError, where="a.doc", problem=".csv", remedy="data.source"):
        load_source(DataConfig(source=str(tmp_path / "a.doc")))


def test_a_choice_is_taken(tree):
    found = listing(tree("a/x/1.png", "b/y/1.png"), layout="domain-class-folders")
    assert (found.class_names, found.domain_names) == (("x", "y"), ("a", "b"))
    with raises(DataError, where="the split folder of a/x/1.png", allowed="train, validation or test", got="a"):
        listing(tree("a/x/1.png"), layout="split-class-folders")


def test_order_of_files_does_not_depend_on_the_disk(tree):
    paths = [f"{name}/{i}.png" for name in "ba" for i in (3, 1, 2)]
    root = tree(*paths)
    assert [str(listing(root).pictures.file(i).relative_to(root)) for i in range(6)] == sorted(paths)


def test_classes_have_the_order_and_names_of_a_file(tree, tmp_path):
    root = tree("n01/1.png", "n02/1.png")
    (root / "classes.txt").write_text("n02 house cat, tabby\nn01 dog\n")
    assert listing(root).class_names == ("house cat, tabby", "dog")
    assert listing(root).labels.tolist() == [1, 0]
    names = tmp_path / "names.csv"
    names.write_text('identifier,name\nn01,"one, two"\nn02,two\n')
    assert listing(root, names=str(names)).class_names == ("one, two", "two")
    names.write_text("n01\thound\nn02\tcat\n", encoding="utf-8-sig")
    assert listing(root, names=str(names)).class_names == ("hound", "cat")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("ant\n", "'bee' (bee/1.png)"),
        ("ant\nbee\nfly\n", "'fly'"),
        ("ant\nbee\nant\n", "'ant'"),
        ("", "empty"),
    ],
)
def test_names_that_do_not_fit(tree, lines, problem):
    root = tree("ant/1.png", "bee/1.png")
    (root / "classes.txt").write_text(lines)
    with raises(DataError, where="classes.txt", problem=problem):
        listing(root)


def test_a_file_of_names_that_cannot_be_read(tree, tmp_path):
    root = tree("ant/1.png", "bee/1.png")
    with raises(DataError, where="none.txt", remedy="data.names"):
        listing(root, names=str(tmp_path / "none.txt"))
    with raises(DataError, where="1.png", problem="'utf-8' codec"):
        listing(root, names=str(root / "ant/1.png"))


def test_empty_class_and_same_names(tree):
    root = tree("ant/1.png", "bee/1.png")
    (root / "cat").mkdir()
    with raises(DataError, where=str(root), problem="'cat'", remedy="--set data.drop_unused_classes=true"):
        load_source(DataConfig(source=str(root)))
    save(root / "cat/1.png"), save(root / "CAT/1.png")
    with raises(DataError, problem="'CAT' and 'cat'", remedy="data.names"):
        load_source(DataConfig(source=str(root)))


def test_heic_is_an_image(tree):
    root = tree("ant/1.png", "bee/1.png")
    (root / "ant/1.png").rename(root / "ant/1.HEIC")
    assert len(listing(root).labels) == 2


def test_other_files_are_ignored_and_counted(tree):
    root = tree("ant/1.png", "bee/1.PNG", "bee/.hidden.png", ".git/x/1.png")
    (root / "ant/notes.txt").write_text("x")
    found = listing(root)
    assert len(found.labels) == 2 and dict(found.ignored) == {"hidden": 2, ".txt": 1}


def test_folders_and_files_of_systems_are_no_classes(tree):
    root = tree("ant/1.png", "bee/1.png", "@eaDir/ant/1.png", "$RECYCLE.BIN/2.png", "__MACOSX/ant/._1.png")
    for name in ("System Volume Information", "lost+found"):
        (root / name).mkdir()
    for name in ("ant/._1.png", "._train.parquet", "._train.tar", "Thumbs.db"):
        (root / name).write_bytes(b"x")
    assert layout_of(root) == "class-folders"
    found = listing(root)
    assert (found.class_names, len(found.labels), found.ignored["hidden"]) == (("ant", "bee"), 2, 8)


@pytest.mark.parametrize(
    ("folder", "layout", "kind"), [("caf\udce9", "", "class"), ("caf\udce9/ant", "domain-class-folders", "domain")]
)
def test_a_folder_whose_name_is_no_text_is_no_name(tree, folder, layout, kind):
    root = tree(f"{folder}/1.png", "tea/ant/1.png" if layout else "tea/1.png")
    with raises(DataError, where=str(root), problem=f"the {kind} name 'caf\\xe9'"):
        load_source(DataConfig(source=str(root), layout=layout or "auto"))
    with raises(DataError, where="data.source", problem=f"'{root}/caf\\xe9'"):
        load_source(DataConfig(source=str(root / "caf\udce9")))


@pytest.mark.parametrize("stray", ["1.png", "ant/more/1.png"])
def test_images_at_another_depth_are_not_left_out_silently(tree, stray):
    root = tree("ant/1.png", "bee/1.png", stray)
    with raises(DataError) as error:
        listing(root)
    assert str(Path(stray).parent) in f"{error.value.where} {error.value.problem}"


def test_images_outside_the_folders_of_classes_are_left_out_if_asked(tree):
    root = tree("ant/1.png", "bee/1.png", "1.png", "2.png")
    with raises(DataError, where="1.png", remedy="--set data.drop_unlabelled=true"):
        listing(root)
    found = listing(root, drop_unlabelled=True)
    assert found.class_names == ("ant", "bee")
    assert found.ignored == {"image without a label": 2}
    assert len(load_source(DataConfig(source=str(root), drop_unlabelled=True)).class_names) == 2
    check_used(DataConfig(source=str(root), drop_unlabelled=True))


def test_links_are_followed_inside_only(tree, tmp_path):
    root = tree("ant/1.png", "bee/1.png")
    (root / "ant/2.png").symlink_to(root / "bee/1.png")
    (root / "cow").symlink_to(root / "bee")
    found = listing(root)
    assert len(found.labels) == 4 and found.pictures.fingerprint(np.arange(4))
    outside = save(tmp_path / "elsewhere/fly/1.png")
    (root / "ant/3.png").symlink_to(outside)
    with raises(DataError, where="3.png", problem=str(outside), remedy="--set data.follow_links=true"):
        load_source(DataConfig(source=str(root)))
    found = listing(root, follow_links=True)
    before = found.pictures.fingerprint(np.arange(5))
    save(outside, 77)
    os.utime(outside, ns=(1, 1))
    assert found.pictures.fingerprint(np.arange(5)) != before, "what a link leads to has changed"
    (root / "ant/3.png").unlink()
    (root / "fly").symlink_to(outside.parent)
    with raises(DataError, where="fly", problem=str(outside.parent), remedy="--set data.follow_links=true"):
        listing(root)
    found = load_source(DataConfig(source=str(root), follow_links=True))
    assert found.class_names == ("ant", "bee", "cow", "fly")
    (root / "fly").unlink()
    (root / "circle").symlink_to(root)
    for follow in (False, True):
        with raises(DataError, where="circle", problem=str(root)):
            listing(root, layout="class-folders", follow_links=follow)
