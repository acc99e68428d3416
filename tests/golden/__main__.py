"""Command `python -m tests.golden [--write]`: print the files that differ, or write them."""

import sys

from tests.golden import expected_files, topics


def main():
    write = sys.argv[1:] == ["--write"]
    changed = [
        (folder / name, content)
        for folder in topics()
        for name, content in expected_files(folder).items()
        if not (folder / name).exists() or (folder / name).read_text() != content
    ]
    for path, content in changed:
        print(f"{'wrote' if write else 'differs:'} {path.parent.name}/{path.name}")
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    return 1 if changed and not write else 0


sys.exit(main())
