"""Folders: what is recognised, what is refused, and what is read."""

import os

import numpy as np
import pytest
from disk import listing, save

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import layout_of, load_source
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
    ("paths", "message"),
    [
        (["train/1.png", "test/1.png"], "are splits and hold images without a class"),
        (
            ["a/x/1.png", "b/y/1.png"],
            "nor domains that hold the same classes.*data.layout to split-class-folders or domain-",
        ),
        (["train/x/1.png", "extra/x/1.png"], "'extra', 'train' and the folders in them are neither all train"),
        (["images/x/1.png", "images/y/1.png"], r"one folder only: give data\.source as .*set/images$"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "'cat', 'dog' and .* nor domains"),
        (["a/1.png", "b/c/1.png"], "at the same depth"),
        (["a/b/x/1.png", "a/b/y/1.png"], r"one folder only: give data\.source as .*set/a/b$"),
        (["a/b/c/x/1.png", "a/b/c/y/1.png"], r"one folder only: give data\.source as .*set/a/b/c$"),
        (["a/b/c/d/1.png", "e/b/c/d/1.png"], "at most 3 are read"),
        (["a/b/c/1.png", "d/b/c/1.png"], "3 folders deep.*data.layout to split-domain-class-folders or domain-split"),
        (["train/p/x/1.png", "train/q/y/1.png"], "nor domains that hold the same classes"),
    ],
)
def test_what_could_mean_several_things_is_refused(tree, paths, message):
    with pytest.raises(DataError, match=message):
        layout_of(tree(*paths))


@pytest.mark.parametrize(
    ("paths", "others", "message"),
    [
        (["a.png", "b.png", "c.JPG"], [], "holds 3 images and no folders: put them in a folder for each class, "),
        (["a.png"], ["notes/x.txt"], "holds 1 image and no folder with images: put them in"),
        (["a.png"], ["list.csv"], "or name the table that says what they are, such as .*list.csv"),
        ([], [], "holds no image: put images in a folder for each class, "),
        ([], ["read me.txt", "x/y.txt", ".hidden.png"], "holds no image: put images in"),
    ],
)
def test_a_directory_without_folders_of_images_is_told_what_to_do(tree, tmp_path, paths, others, message):
    (tmp_path / "set").mkdir()
    for other in others:
        (tmp_path / "set" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / other).write_text("")
    with pytest.raises(DataError, match=message) as error:
        load_source(DataConfig(source=str(tree(*paths))))
    assert "CLASS/…" in str(error.value) and "fedpgp data layouts" in str(error.value)
    assert "domain-class-folders" not in str(error.value)


@pytest.mark.parametrize("paths", [["x\\1.png", "y\\1.png"], ["x/1.png", "y\\1.png"]])
def test_names_of_a_zip_of_windows_are_told_what_to_do(tree, paths):
    with pytest.raises(DataError, match=r"\\1\.png: .*has \\ in the place of /.*unpack it again with unzip"):
        load_source(DataConfig(source=str(tree(*paths))))


def test_a_file_that_is_no_table_is_told_what_to_name(tree, tmp_path):
    with pytest.raises(DataError, match=r"a\.png is an image: name the directory with a folder for each class"):
        load_source(DataConfig(source=str(tree("a.png") / "a.png")))
    (tmp_path / "a.doc").write_text("")
    with pytest.raises(DataError, match=r"a\.doc is no table \(\.csv.*: name one, or a directory"):
        load_source(DataConfig(source=str(tmp_path / "a.doc")))


def test_a_choice_is_taken(tree):
    found = listing(tree("a/x/1.png", "b/y/1.png"), layout="domain-class-folders")
    assert (found.class_names, found.domain_names) == (("x", "y"), ("a", "b"))
    with pytest.raises(DataError, match=r"the split folder of a/x/1\.png must be train, validation or test, got 'a'"):
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
    ("lines", "message"),
    [
        ("ant\n", r"no name for 1 of 2 classes, the first is 'bee' \(bee/1\.png\)"),
        ("ant\nbee\nfly\n", "1 of 3 lines.*'fly'"),
        ("ant\nbee\nant\n", "'ant' more than once"),
        ("", "is empty"),
    ],
)
def test_names_that_do_not_fit(tree, lines, message):
    root = tree("ant/1.png", "bee/1.png")
    (root / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        listing(root)


def test_a_file_of_names_that_is_none(tree, tmp_path):
    root = tree("ant/1.png", "bee/1.png")
    with pytest.raises(DataError, match=r"none\.txt cannot be read.*data\.names"):
        listing(root, names=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"1\.png cannot be read: 'utf-8' codec"):
        listing(root, names=str(root / "ant/1.png"))


def test_empty_class_and_same_names(tree):
    root = tree("ant/1.png", "bee/1.png")
    (root / "cat").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 classes have no image, the first is 'cat'"):
        load_source(DataConfig(source=str(root)))
    save(root / "cat/1.png"), save(root / "CAT/1.png")
    with pytest.raises(DataError, match="'CAT' and 'cat' are the same name"):
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
    with pytest.raises(DataError, match=rf"the {kind} name 'caf\\xe9' must be text in UTF-8.*: rename its folder"):
        load_source(DataConfig(source=str(root), layout=layout or "auto"))
    with pytest.raises(DataError, match=r"data.source must be text in UTF-8.*caf\\xe9'"):
        load_source(DataConfig(source=str(root / "caf\udce9")))


@pytest.mark.parametrize("stray", ["1.png", "ant/more/1.png"])
def test_images_at_another_depth_are_not_left_out_silently(tree, stray):
    root = tree("ant/1.png", "bee/1.png", stray)
    with pytest.raises(DataError, match=r"outside the folder of a class|below those of a class"):
        listing(root)


def test_links_are_followed_inside_only(tree, tmp_path):
    root = tree("ant/1.png", "bee/1.png")
    (root / "ant/2.png").symlink_to(root / "bee/1.png")
    (root / "cow").symlink_to(root / "bee")
    found = listing(root)
    assert len(found.labels) == 4 and found.pictures.fingerprint(np.arange(4))
    outside = save(tmp_path / "elsewhere/fly/1.png")
    (root / "ant/3.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"3\.png leads out of .*--set data\.follow_links=true"):
        load_source(DataConfig(source=str(root)))
    found = listing(root, follow_links=True)
    before = found.pictures.fingerprint(np.arange(5))
    save(outside, 77)
    os.utime(outside, ns=(1, 1))
    assert found.pictures.fingerprint(np.arange(5)) != before, "what a link leads to has changed"
    (root / "ant/3.png").unlink()
    (root / "fly").symlink_to(outside.parent)
    with pytest.raises(DataError, match="fly: is a link that leads out"):
        listing(root)
    found = load_source(DataConfig(source=str(root), follow_links=True))
    assert found.class_names == ("ant", "bee", "cow", "fly")
    (root / "fly").unlink()
    (root / "circle").symlink_to(root)
    for follow in (False, True):
        with pytest.raises(DataError, match="in a circle"):
            listing(root, layout="class-folders", follow_links=follow)
