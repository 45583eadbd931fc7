"""Write the rows of the example: sections of the manual that ships with Python, some of them duplicated."""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found]  # has no types


def rows() -> list[dict[str, str]]:
    """Return the first paragraph of every topic, and a copy in different case for every fifth topic."""
    found = []
    for place, (name, text) in enumerate(sorted(topics.items())):
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        longest = max(paragraphs, key=len)[:600]
        found.append({"topic": name, "text": longest})
        if place % 5 == 0:
            found.append({"topic": name, "text": longest.upper()})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path(__file__).with_name(".data") / "texts.jsonl"
    )
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    print(f"{len(rows())} rows in {file}")
