from collections.abc import Callable
from pathlib import Path

import pytest

from medduet.data.tables import list_table
from medduet.errors import DataError

Make = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str) -> Path:
        (tmp_path / "table.csv").write_text(text)
        return tmp_path / "table.csv"

    return make


def test_a_table(table: Make, tmp_path: Path) -> None:
    listing = list_table(
        table(
            "path,label,mask,group,split,age\n"
            "a.png,ill,a_1.png|a_2.png,p1,train,40\n"
            "sub/b.dcm,well,,p1,valid,41\n"
            "c.png,?,,,test,42\n"
            "d.png,,,,test,43\n"
        )
    )
    items = {item.name: item for item in listing.items}
    assert listing.class_names == ("ill", "well")
    assert items["a.png"].masks == (tmp_path / "a_1.png", tmp_path / "a_2.png")
    assert items["sub/b.dcm"].path == tmp_path / "sub/b.dcm"
    assert [item.split for item in items.values()] == ["train", "val", "test", "test"]
    assert items["a.png"].group == items["sub/b.dcm"].group == "p1"
    assert items["c.png"].labels is items["d.png"].labels is None
    several = list_table(table("path,labels\na.png,x|y\nb.png,\nc.png,?\nd.png,y\n"))
    assert several.multi_label
    assert [item.labels for item in several.items] == [("x", "y"), (), None, ("y",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na.png,trian\n", "row 2: expected split train, val, test, given 'trian'"),
        ("path\na.png\na.png\n", "row 3: expected the path of another image, given 'a.png'"),
        ("path,split\na.png,train\nb.png,\n", "a split for every image or for none"),
    ],
)
def test_tables_that_are_none(text: str, message: str, table: Make) -> None:
    with pytest.raises(DataError, match=message):
        list_table(table(text))
