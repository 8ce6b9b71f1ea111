from __future__ import annotations

import datetime
import gzip
import random
from pathlib import Path

import pytest

from ninthsky.errors import UserError
from ninthsky.radio.counters import read_counters
from ninthsky.radio.measurements import Damaged, read_measurements

FIRST = datetime.datetime(2026, 1, 5)


def load_at(hour: int, cell: int) -> int:
    return 5 + 3 * (hour % 24) // 2 + cell


def document(day: int, *, listed: bool = True, quarter: int | None = None) -> str:
    """A day of two cells of one element, as a vendor writes it: values in a list, or each in an element of its own."""
    infos = []
    for hour in range(24):
        end = FIRST + datetime.timedelta(days=day, hours=hour + 1)
        values = []
        for cell in (1, 2):
            mark = "<suspect>true</suspect>" if quarter == hour and cell == 2 else ""
            load = load_at(hour, cell)
            body = f"<measResults>9 {load}</measResults>" if listed else f'<r p="1">9</r><r p="2">{load}</r>'
            values.append(f'<measValue measObjLdn="GNBDUFunction=1,NRCellDU={cell}">{body}{mark}</measValue>')
        types = (
            "<measTypes>RRC.ConnMean RRU.PrbTotDl</measTypes>"
            if listed
            else '<measType p="1">RRC.ConnMean</measType><measType p="2">RRU.PrbTotDl</measType>'
        )
        infos.append(
            f'<measInfo><granPeriod duration="PT3600S" endTime="{end.isoformat()}+01:00"/>{types}{"".join(values)}</measInfo>'
        )
    root, entity = ("measCollecFile", "managedElement") if listed else ("measDataFile", "measEntity")
    return (
        f'<?xml version="1.0"?><{root} xmlns="urn:x"><fileHeader/><measData>'
        f'<{entity} localDn="ManagedElement=7" userLabel="S7"/>{"".join(infos)}</measData></{root}>'
    )


@pytest.mark.parametrize("listed", [True, False])
def test_a_folder_of_days_becomes_counters(tmp_path: Path, listed: bool) -> None:
    for day in range(6):
        (tmp_path / f"A{day}.xml.gz").write_bytes(gzip.compress(document(day, listed=listed, quarter=4).encode()))
    counters, findings = read_counters(tmp_path, hour_label="end")  # the files say themselves which end they name
    assert counters.first_day == FIRST.date() and counters.days == 6
    assert counters.station == ["S7", "S7"]
    assert counters.loads()[0, 24 + 7] == pytest.approx(load_at(7, 1) / 100, rel=0.1)
    assert findings.count("values marked suspect") == 6
    assert counters.codes[1, 4] == 255


def test_a_delivery_with_one_damaged_file_of_many_is_read(tmp_path: Path) -> None:
    for day in range(30):
        text = document(day)
        (tmp_path / f"A{day:02d}.xml").write_text(text[: len(text) // 2] if day == 12 else text)
    delivery = read_measurements(tmp_path)
    assert [count for what, count, _ in delivery.found if "cannot be read (A12.xml" in what] == [1]
    assert len(delivery.rows) == 29 * 48


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no well-formed XML"),
        ("<html/>", "<html> is no measurement file"),
        (document(0).replace("PT3600S", "P1D"), "duration='P1D'"),
        (document(0).replace("2026-01-05T03", "2026-13-05T03"), "is no time"),
        (document(0).replace("RRU.PrbTotDl", "RRU.PrbTotUl"), "no measured object has the counter"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><measDataFile>&b;</measDataFile>', "no well-formed XML"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "A.xml"
    path.write_text(text)
    with pytest.raises(UserError, match="N9-RAD-001") as caught:
        read_counters(path)
    assert said in caught.value.what


def test_damaged_files_are_read_or_refused_and_never_crash(tmp_path: Path) -> None:
    whole, rng = document(0).encode(), random.Random(3)
    for number in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 9)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 9)))
        path = tmp_path / f"{number}.xml"
        path.write_bytes(data)
        try:
            rows = read_measurements(path).rows
        except Damaged as error:
            assert str(error)
        else:
            assert 0 < len(rows) <= 48
