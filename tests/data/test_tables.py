from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import medduet
from medduet.data.tables import list_table
from medduet.errors import DataError

Make = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Make:
    """Write a table beside ``a.png`` to ``d.png``, and other files."""

    def make(text: str | bytes, *names: str) -> Path:
        for name in ("a.png", "b.png", "c.png", "d.png", *names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "table.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path / "table.csv"

    return make


def test_a_table(table: Make, tmp_path: Path) -> None:
    listing = list_table(
        table(
            "path,label,mask,group,split,age\n"
            "a.png,ill,a_1.png|a_2.png,p1,train,40\n"
            "sub/b.dcm,well,,p1,valid,41\n"
            "c.png,?,,,test,42\n"
            "d.png,,,,test,43\n",
            *("a_1.png", "a_2.png", "sub/b.dcm"),
        )
    )
    items = {item.name: item for item in listing.items}
    assert listing.class_names == ("ill", "well")
    assert items["a.png"].masks == (tmp_path / "a_1.png", tmp_path / "a_2.png")
    assert items["sub/b.dcm"].path == tmp_path / "sub/b.dcm"
    assert [item.split for item in items.values()] == ["train", "val", "test", "test"]
    assert items["a.png"].group == items["sub/b.dcm"].group == "p1"
    assert items["c.png"].labels is items["d.png"].labels is None
    assert listing.notes == ("columns: not used: age",)


_ROWS = "path,label\na.png,Läsion\nb.png,klein\n"


@pytest.mark.parametrize(
    "content",
    [
        *(_ROWS.encode(name) for name in ("utf-8-sig", "utf-16", "cp1252")),
        *(_ROWS.replace(",", mark).encode() for mark in (";", "\t", "|", " , ")),
        *(_ROWS.replace("\n", end).encode() for end in ("\r\n", "\r", "\n\n", ",\n", ",,\n")),
        f"{_ROWS},\n,,,\n".encode(),
        normalize("NFD", _ROWS).encode(),
        b'"path", "label"\n"a.png", "L\xc3\xa4sion"\n"b.png", "klein"\n',
        ",path,label\n0,a.png,Läsion\n1,b.png,klein\n".encode(),
        "Unnamed: 0;Image Name;DX\n0;a.png;Läsion\n1;b.png;klein\n".encode(),
    ],
)
def test_ways_to_write_a_table(content: bytes, table: Make) -> None:
    items = [(item.name, item.labels) for item in list_table(table(content)).items]
    assert items == [("a.png", ("Läsion",)), ("b.png", ("klein",))]


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        (r"imgs\x\1.png", "imgs/x/1.png"),
        (r"imgs\1.png", "imgs\\1.png"),
        (r"C:\Users\me\set\imgs\1.png", "imgs/1.png"),
        ("/home/me/1.png", "imgs/1.png"),
        ("ISIC_1", "images/part 1/ISIC_1.jpg"),
        ("imgs/ISIC_1", "imgs/ISIC_1.jpg"),
        ("7.png", "segmentation data/7.png"),
        ("IMG.PNG", "imgs/img.png"),
        ("Läsion/é.png", normalize("NFD", "Läsion/é.png")),
        (normalize("NFD", "é"), "sub/é.png"),
        ("é/Å.png", normalize("NFD", "é") + "/Å.png"),
        ("1/2/3/4/5/é.png", normalize("NFD", "1/2/3/4/5/é.png")),
    ],
)
def test_where_a_file_is(cell: str, file: str, table: Make, tmp_path: Path) -> None:
    mask = "masks/ISIC_1.png"  # it is no second image of that name
    (item,) = list_table(table(f"path,mask\n{cell},{mask}\n", file, mask)).items
    assert (item.path, item.masks) == (tmp_path / file, (tmp_path / mask,))


def test_files_that_are_not_there_are_named_with_their_line(table: Make) -> None:
    listing = list_table(
        table(
            'path,note,mask\na.png,"two\nlines",\n\nx/b.png,"a\nb",\nc.png,,m.png\ne.png,,\n',
            "masks/e.png",
        )
    )
    assert [item.name for item in listing.items] == ["a.png"]
    reasons = [reason for _, reason in listing.faults]
    absent = [(5, "x/b.png"), (7, "m.png"), (8, "e.png")]
    assert reasons == [f"line {line}: there is no file {name}" for line, name in absent]


def test_what_is_no_name_of_a_file_is_not_there(table: Make) -> None:
    ((_, reason),) = list_table(table(f"path,label\na.png,1\n{'word ' * 60},0\n")).faults
    assert reason.startswith("line 3: there is no file word word")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path,label\na.png,1.0\nb.png,2.0\nc.png,10\nd.png,NaN\n", ["1", "2", "10", None]),
        ("path;label\na.png;1,0\nb.png;2,0\n", ["1", "2"]),
        ("path,labels\na.png,x|y\nb.png,nan\nc.png,?\nd.png,\n", ["x|y", None, None, ""]),
        ("Image Index,Finding Labels\na.png,x | y|x\nb.png,z\n", ["x|y", "z"]),
        ("path,dx,label\na.png,x,1.5 T\nb.png,y,v\n", ["1.5 T", "v"]),
        ("image,MEL,NV,UNK\na.png,0.0,1.0,0.0\nb.png,1.0,0.0,0.0\nc.png,,,\n", ["NV", "MEL", None]),
        ("image;MEL;NV\na.png;0,0;1,0\nb.png;1,0;0,0\n", ["NV", "MEL"]),
        ("path,MEL,NV,sex\na.png,False,True,1\nb.png,True,False,0\n", ["NV", "MEL"]),
        ("path,x,y\na.png,1,1\nb.png,0,0\nc.png,,\nd.png,0,1\n", ["x|y", "", None, "y"]),
        ("path,MEL,NV,dx\na.png,0,1,x\nb.png,1,0,y\n", ["x", "y"]),
        ("path,smoker\na.png,1\nb.png,0\n", [None, None]),
        ("path,CA,VA,age_at_diagnosis\na.png,1,0,44\nb.png,0,1,50\n", ["CA", "VA"]),
        ("path,sex,train\na.png,1,0\nb.png,0,1\n", [None, None]),
    ],
)
def test_classes(text: str, labels: list[str | None], table: Make) -> None:
    listing = list_table(table(text))
    given = [None if item.labels is None else "|".join(item.labels) for item in listing.items]
    assert given == labels
    assert listing.multi_label == ("x|y" in labels)


def test_what_is_missing_is_what_pandas_takes_for_it(table: Make) -> None:
    words = ["NaN", "nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "None", "none", "no"]
    names = [f"{k}.png" for k in range(len(words))]
    path = table("path,label\n" + "\n".join(map(",".join, zip(names, words, strict=True))), *names)
    unknown = [item.labels is None for item in list_table(path).items]
    assert unknown == pd.read_csv(path)["label"].isna().tolist()


@pytest.mark.parametrize("name", ["PatientID", "patientid", "subject_id", "lesion_id", "Study"])
def test_groups(name: str, table: Make) -> None:
    listing = list_table(table(f"path,{name}\na.png,1\nb.png,1.0\nc.png,\nd.png,nan\n"))
    assert [item.group for item in listing.items] == ["1", "1", "", ""]
    assert listing.notes == (f"columns: {name} read as group",)


def test_patients_in_paths_are_groups(table: Make) -> None:
    names = [f"v/patient0{n}/study{k}/x.jpg" for n in (1, 2) for k in (1, 2)]
    listing = list_table(table("\n".join(["Path", *names]), *names))
    assert [item.group for item in listing.items] == ["patient01"] * 2 + ["patient02"] * 2
    assert listing.notes == ("names tell patients apart, such as patient01",)
    one = list_table(table("\n".join(["Path", *names[:2]])))
    assert [item.group for item in one.items] == ["", ""]


def test_the_widest_group_is_taken_where_it_is_known(table: Make) -> None:
    rows = "path,lesion_id,patient_id,study\na.png,x,1,m\nb.png,y,1,n\nc.png,z,,n\n"
    listing = list_table(table(rows))
    assert [item.group for item in listing.items] == ["1", "1", "n"]
    assert listing.notes == ("columns: patient_id, study read as group; not used: lesion_id",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na.png,trian\n", "line 2: expected split train, val, test, given 'trian'"),
        ("path\na.png\n./a.png\n", r"line 3: .*one row per image"),
        ("path,split\na.png,train\nb.png,\n", "a split for every image or for none"),
        ("path,label\n\na.png,carcinoma, in situ\n", "line 3: expected 2 cells, given 3.*quotes"),
        ("path,label,age\na.png,x,1\nb.png,y\n", "line 3: expected 3 cells, given 2"),
        ('path,label\na.png,"x\nb.png,y\n', "line 2: expected quotes around a whole cell"),
        ("path,label\na.png,1\nb.png,0.73\n", r"line 3: .*given the number 0\.73: .*low and high"),
        ("path,label\na.png,x|y\n", "line 2: expected one class.*call the column labels"),
        ("path,labels\na.png,x;y\n", r"line 2: expected \| between"),
        ("path,label\na.png,m/a.png\n", "line 2: .*call the column mask"),
        ("path,label,labels\na.png,x,y\n", "one column of classes, given label, labels: keep one"),
        ("path,dx,diagnosis\na.png,x,y\n", "given diagnosis, dx: keep one, called label"),
        ("path,x,y\na.png,0,0\nb.png,0,1\nc.png,1,0\n", "line 2: expected a 1 in one of .* x, y"),
        ("path,x,y\na.png,1,0\nb.png,0,1\nc.png,-1,0\n", "line 4: expected 0 or 1 .*given '-1'"),
        ("a.png,x\nb.png,y\n", "a column path, named in the first line, given a.png, x"),
        ("image\nold/f.png\n", "line 2: expected paths relative to the table.*old/f.png"),
        ("image\nx/a.png\ny/b.png\n", "line 2: expected paths relative"),
        ("image\ne\n", r"one file called e, given e\.jpg or sub/e\.png"),
        (
            "path,dme,ok,dr_grade\na.png,0,1,2\nb.png,1,0,0\n",
            "0 and 1 in dme, ok, and dr_grade: call",
        ),
        (b"path\n\0\n", "expected text"),
    ],
)
def test_tables_that_are_refused(text: str | bytes, message: str, table: Make) -> None:
    with pytest.raises(DataError, match=message):
        list_table(table(text, "e.jpg", "sub/e.png"))


def test_how_a_table_was_read_is_noted(tmp_path: Path, cache: Path) -> None:
    rng, rows = np.random.default_rng(0), ["image_id;dx;age", "nowhere;big;1"]
    for k in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k};{('big', 'small', 'Big ')[k % 3]};{k}")
    (tmp_path / "set.tsv").write_text("\n".join(rows))
    images = medduet.open_images(str(tmp_path / "set.tsv"), cache=cache, skip_broken=True)
    assert images.info["skipped"] == [["nowhere", "line 2: there is no file nowhere"]]
    notes = [
        "columns: image_id read as path; dx read as label; not used: age",
        "classes that differ only in case or spacing: big (15), Big (13)",
    ]
    assert images.info["notes"] == notes
