#!/usr/bin/env python3
"""One text file of a folder of books in Markdown: books_text.py FOLDER FILE.

The header of a book (title, author, year, up to a line of dashes) is left out; books are two line ends apart, in the
order of their paths.
"""
import pathlib
import sys

folder, file = map(pathlib.Path, sys.argv[1:3])
books = sorted(folder.rglob("*.md"), key=str)
if not books:
    sys.exit(f"{folder}: no *.md there")
with file.open("wb") as out:
    for book in books:
        text = book.read_bytes()
        end = text.find(b"\n-------\n")
        text = text[end + 9 :] if 0 <= end < 600 else text
        out.write(text.strip() + b"\n\n")
print(f"{file}: {len(books)} books, {file.stat().st_size:,} bytes")
