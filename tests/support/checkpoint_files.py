"""Changing the members of a checkpoint."""

import json
import zipfile


def rewrite(path, change):
    """Give every member of the zip, as {name: bytes}, to `change`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def change_header(**changes):
    def change(members):
        header = json.loads(members["checkpoint.json"])
        header.update(changes)
        members["checkpoint.json"] = json.dumps(header).encode()

    return change
